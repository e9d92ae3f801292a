"""``python -m dynattn``: the command, for launchers that start modules, as torchrun does.

``python -P -m dynattn``, from Python 3.11, leaves the current directory out of the imports from the beginning.
"""

from dynattn.children import leave_current_directory_out

if __name__ == "__main__":
    leave_current_directory_out()
    from dynattn.cli import app

    app(prog_name="dynattn")
