"""``python -m vaccel``: the command line, as ``accelerate launch -m vaccel distill ...`` starts it."""

from vaccel.cli import app

if __name__ == "__main__":
    app()
