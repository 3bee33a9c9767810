"""The command line: ``vaccel``, or ``python -m vaccel`` as ``accelerate launch -m vaccel distill ...`` starts it."""

from __future__ import annotations

import sys

from .extras import command


def main() -> None:
    """Runs the command line; a package that is missing is said in one line, with what to type."""
    try:
        from .cli import app

        app()
    except ModuleNotFoundError as error:
        brings = command(error.name or "")
        if not brings:
            raise
        print(f"vaccel: this command needs {error.name}: {brings}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
