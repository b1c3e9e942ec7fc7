"""`python -m services.local_stack` is the command line."""

from services.local_stack.cli import app

if __name__ == "__main__":
    app()
