"""``python -m intact`` is the command ``intact``."""

from intact.cli import app

if __name__ == "__main__":
    app(prog_name="intact")
