"""The page of `vaccel app` on the family that ships with vaccel, as a Space or on any machine: ``python app.py``."""

from vaccel.app import page, studio_of
from vaccel.cli.loading import Loaded

if __name__ == "__main__":
    page.serve(studio_of(Loaded("demo", None, None, "float32")))
