"""``python -m dynattn``: the command, for launchers that start modules, as torchrun does.

The current directory is left out of the imports by :mod:`dynattn.safe_path`.
"""

if __name__ == "__main__":
    from dynattn.cli import app

    app(prog_name="dynattn")
