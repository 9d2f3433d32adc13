"""``python -m skdiec.cli``."""

from skdiec.cli import app

if __name__ == "__main__":
    app()
