"""The page itself: a thin layer of Gradio over a ``Studio``.  Nothing on it is fetched from another machine."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from html import escape
from pathlib import Path
from typing import Any

from ..extras import needed

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when it is imported

with needed("the page"):
    import gradio as gr

from . import shown
from .jobs import Job
from .studio import FASTEST, SLOWEST, Studio

#: Seconds between two looks at a request.
EVERY = 0.15
#: What the machine has itself: Gradio's own fonts, and those of Google, are left out.
FONTS = ["system-ui", "sans-serif"]
MONO = ["ui-monospace", "monospace"]
#: Videos of a page show the same frame at the same time; clips that are pictures do by CSS alone.
HEAD = """<script>
setInterval(() => document.querySelectorAll(".vaccel-clips").forEach((group) => {
  const [first, ...others] = group.querySelectorAll("video");
  for (const video of others) {
    if (Math.abs(video.currentTime - first.currentTime) > 0.08) video.currentTime = first.currentTime;
    if (first.paused !== video.paused) first.paused ? video.pause() : video.play();
  }
}), 250);
</script>"""


def page(studio: Studio) -> gr.Blocks:
    """The page of a studio, not yet served.  Its endpoints for ``gradio_client`` are ``/run`` and ``/stop``."""
    with gr.Blocks(title=f"vaccel: {studio.name}", analytics_enabled=False) as blocks:
        gr.HTML(_head(studio))
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=300):
                prompt = gr.Textbox(studio.examples[0], label="Prompt", lines=2, max_lines=6, elem_id="prompt")
                gr.Examples(studio.examples, prompt, label="Examples", examples_per_page=4)
            with gr.Column(scale=4, min_width=300):
                speed = gr.Slider(
                    SLOWEST, FASTEST, value=2.5, step=0.1, label="Speed: times as fast as the full model",
                    info="1 computes all steps: the full model, bit for bit", buttons=[], elem_id="speed",
                )  # fmt: skip
                with gr.Row():
                    seed = gr.Number(0, label="Seed", precision=None, minimum=0, min_width=110, elem_id="seed")
                    steps = gr.Number(
                        studio.steps, label="Steps", precision=None, minimum=1, min_width=110, elem_id="steps"
                    )
                method = gr.Dropdown(
                    list(studio.methods), value=next(iter(studio.methods)), label="Method", elem_id="method",
                    visible=len(studio.methods) > 1, info="Auto goes by the slider; the others as they are",
                )  # fmt: skip
                with gr.Row():
                    run = gr.Button("Make both", variant="primary", min_width=110, elem_id="run")
                    stop = gr.Button("Stop", interactive=False, min_width=110, elem_id="stop")
        status = gr.HTML(elem_id="status")
        clips, figures = gr.HTML(elem_id="clips"), gr.HTML(elem_id="figures")
        with gr.Accordion("What every step did", open=True, visible=False, elem_id="trace") as drawer:
            trace = gr.HTML()
        numbers = gr.JSON(visible=False)
        _wire(studio, blocks, [prompt, seed, steps, speed, method], [status, clips, figures, drawer, trace, numbers],
              run, stop, speed)  # fmt: skip
    blocks.queue(default_concurrency_limit=None, max_size=None)  # whose turn it is, the studio knows
    return blocks


def serve(
    studio: Studio, *, host: str | None = None, port: int | None = None, share: bool = False, open: bool = False,
    wait: bool = True,
) -> gr.Blocks:  # fmt: skip
    """Serves the page of a studio.

    Args:
        host: the address to listen at; None for that of GRADIO_SERVER_NAME, or this machine alone.
        port: None for that of GRADIO_SERVER_PORT, or the first free one from 7860 on.
        share: ask gradio.live for a public address too, which takes the network.
        open: show it in the browser.
        wait: until Ctrl-C, which closes the page and leaves the pipeline as it was; else the caller does that.

    Raises ``OSError`` where the port is taken.
    """
    blocks = page(studio)
    try:
        blocks.launch(
            server_name=host, server_port=port, share=share, inbrowser=open, prevent_thread_lock=True, quiet=True,
            footer_links=[], ssr_mode=False, mcp_server=False, enable_monitoring=False, head=HEAD,
            theme=_theme(),
            css_paths=Path(__file__).with_name("page.css"),
        )  # fmt: skip
        print(f"vaccel: {blocks.share_url or blocks.local_url}", flush=True)
        if wait:
            threading.Event().wait()
    except BaseException:
        close(blocks, studio)
        raise
    return blocks


def _theme() -> gr.themes.Base:
    """Blue on slate, in the machine's own fonts; small text dark enough to be read."""
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONO)
    return theme.set(body_text_color_subdued="*neutral_500", block_info_text_color="*neutral_500")


def close(blocks: gr.Blocks, studio: Studio) -> None:
    """Ends what runs, after the step in progress, and the server."""
    studio.close()
    blocks.close(verbose=False)


def _head(studio: Studio) -> str:
    frames, height, width = studio.shape[:3]
    made = f"images of {width} x {height}" if frames == 1 else f"clips of {frames} frames, {width} x {height}"
    return (
        f'<div class="vaccel-head"><h1>vaccel: the full model and a fast run, side by side</h1>'
        f"<p>{escape(studio.name)}, {made}</p></div>"
    )


def _wire(
    studio: Studio, blocks: gr.Blocks, inputs: list[Any], outputs: list[Any], run: gr.Button, stop: gr.Button,
    speed: gr.Slider,
) -> None:  # fmt: skip
    """What the buttons do."""

    async def make(prompt, seed, steps, speed, method, request: gr.Request) -> AsyncIterator[tuple]:
        try:
            job = studio.submit(studio.request(prompt, seed, steps, speed, method), request.session_hash or "")
        except (ValueError, RuntimeError) as error:
            yield *_only(shown.note_html(str(error), error=True), numbers={"error": str(error)}), gr.skip()
            return
        async for update in _followed(studio, job):
            yield update

    async def again(prompt, seed, steps, speed, method, request: gr.Request) -> AsyncIterator[tuple]:
        """The slider was moved: the fast clip anew, where that is all there is to make."""
        try:
            cheap = studio.keeps(studio.request(prompt, seed, steps, speed, method))
        except ValueError:
            cheap = False
        if not cheap or studio.pending(request.session_hash or ""):
            yield (gr.skip(),) * (len(outputs) + 1)
            return
        async for update in make(prompt, seed, steps, speed, method, request):
            yield update

    async def halt(request: gr.Request) -> Any:
        return gr.skip() if studio.cancel(request.session_hash or "") else gr.update(interactive=False)

    def left(request: gr.Request) -> None:
        studio.cancel(request.session_hash or "")

    prompt = inputs[0]
    common = {"inputs": inputs, "outputs": [*outputs, stop], "show_progress": "hidden"}
    gr.on([run.click, prompt.submit], make, api_name="run", **common)
    speed.release(again, api_visibility="private", **common)
    stop.click(halt, None, stop, queue=False, show_progress="hidden", api_name="stop")
    blocks.unload(left)


async def _followed(studio: Studio, job: Job) -> AsyncIterator[tuple]:
    """The page's outputs while a request waits, runs and ends."""
    said = ""
    try:
        while not job.over:
            now = shown.progress_html(job, studio.before(job))
            if now != said and studio.pending(job.owner) in (job, None):  # one request of a page tells of itself
                yield *_only(now), gr.update(interactive=True)
                said = now
            await asyncio.sleep(EVERY)
    finally:
        job.cancel()  # where the browser has gone; of a request that is over it does nothing
    idle = gr.update(interactive=False)
    if job.made is None:
        stopped = job.status == "cancelled"
        text = "Stopped: the pipeline is as it was." if stopped else job.error
        yield *_only(shown.note_html(text, error=not stopped), numbers={"error": text}), idle
        return
    made = job.made
    parts = [f(made) for f in (shown.clips_html, shown.figures_html)]
    drawn, numbers = await asyncio.to_thread(lambda: (shown.trace_html(made), made.numbers()))
    hint = shown.note_html(studio.hint(made.request.prompt))
    yield hint, *parts, gr.update(visible=True), drawn, numbers, idle


def _only(status: str, numbers: Any = None) -> tuple:
    """Outputs of which the status alone is new, and what clients read."""
    return status, gr.skip(), gr.skip(), gr.skip(), gr.skip(), gr.skip() if numbers is None else numbers
