"""``vaccel app``: a page in the browser that makes the full model's clip and a fast one, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .completion import methods
from .console import clear_errors, say
from .loading import Loaded, contender
from .options import Call, Dtype, Small, Steps

#: What an own pipeline's page begins with.
EXAMPLES = [
    "A red fox walks through fresh snow at sunrise",
    "A glass of water on a wooden table, soft light from a window",
    "Waves break on a rocky shore under a cloudy sky",
]


def web(
    pipeline: Annotated[str, typer.Option(help="Pipeline folder or hub name; 'demo' is the shipped family.")] = "demo",
    small: Small = None,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", "-m", autocompletion=methods, help="One that may be chosen instead of the slider's "
                     "Auto, as it would be called, such as 'SRDiffusion(0.01)'. Repeat for more."),
    ] = None,
    artifact: Annotated[
        list[Path] | None,
        typer.Option(help="A calibration that the slider's Auto chooses from (`vaccel calibrate forecast` makes one). "
                     "Repeat for more.", exists=True, dir_okay=False),
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="An example. Repeat for more.")] = None,
    steps: Steps = 50,
    call: Call = None,
    dtype: Dtype = "float32",
    fps: Annotated[int | None, typer.Option(min=1, help="Frames a second.", show_default="12")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port.", show_default="the first free one from 7860 on")
    ] = None,
    share: Annotated[bool, typer.Option("--share", help="Ask gradio.live for a public address too.")] = False,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Show it in the browser.")] = True,
) -> None:  # fmt: skip
    """Try it in the browser: a prompt, a slider for the speed, full and fast side by side.

    The page is served on this machine until Ctrl-C. Exit status: 2 for input that cannot be used.
    """
    with clear_errors("the page is closed, the pipeline as it was"):
        if port is not None:
            check_port(host, port)
        import gradio  # noqa: F401  where it is missing, that is said before what takes long to import

        from ..app.page import serve
        from ..app.studio import studio_of

        loaded = Loaded(pipeline, small, call, dtype)
        chosen = [contender(text, loaded.folder, pipeline, steps) for text in method or ()]
        settings = {"examples": [p for p in prompt or () if p.strip()], "fps": fps}
        if pipeline != "demo":
            settings = {"examples": settings["examples"] or EXAMPLES, "fps": fps or 12, "name": pipeline}
        say("trying the pipeline for two steps")
        studio = studio_of(
            loaded, steps=steps, methods=chosen, artifacts=artifact or (),
            **{name: value for name, value in settings.items() if value},
        )  # fmt: skip
        say("Ctrl-C ends it")
        serve(studio, host=host, port=port, share=share, open=open_)


def check_port(host: str, port: int) -> None:
    """Raises ``typer.BadParameter`` where nothing can listen there, before a pipeline is loaded."""
    import socket

    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise typer.BadParameter(
            f"nothing can listen at {host}:{port}: {error.strerror}", param_hint="--port"
        ) from None
