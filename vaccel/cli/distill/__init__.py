"""``vaccel distill``: prepare the data, train a stage, measure the noise levels.  One file a command."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from .diagnose import diagnose
from .prepare import prepare
from .train import train

__all__ = ["app"]


class _DefaultsToTrain(TyperGroup):
    """``vaccel distill PIPELINE ...`` means ``vaccel distill train PIPELINE ...``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["train", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_DefaultsToTrain,
    no_args_is_help=True,
    help="Distil a dual expert: `prepare` the data, then `vaccel distill PIPELINE --data DATA --stage semantic`, "
    "then the same with --stage detail. Several GPUs: `accelerate launch -m vaccel distill ...`.",
)
app.command("prepare")(prepare)
app.command("train")(train)
app.command("diagnose")(diagnose)
