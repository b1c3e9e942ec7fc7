"""`python -m services.command_line` is the whole command line."""

from services.command_line.main import app

if __name__ == "__main__":
    app()
