"""``skdiec`` and ``python -m skdiec``: the command line, or how to install it."""

import importlib.util
import sys


def main() -> None:
    """Run the command line."""
    if importlib.util.find_spec("typer") is None:
        sys.exit('the command line needs typer, which is not installed: pip install "skdiec[cli]"')
    from skdiec.cli import app

    app()


if __name__ == "__main__":
    main()
