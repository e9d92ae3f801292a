"""``python -m dynattn``: the command, for launchers that start modules, as torchrun does."""

from dynattn.cli import app

if __name__ == "__main__":
    app(prog_name="dynattn")
