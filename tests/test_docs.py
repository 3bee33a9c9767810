"""Every Python block of README.md and docs/ runs, page by page and in order, on tiny pipelines."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from diffusers import WanPipeline

import vaccel

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.S | re.M)
PAGES = {
    str(path.relative_to(ROOT)): found
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if (found := BLOCK.findall(path.read_text()))
}
PROMPTS = ["a red cat runs", "a blue dog sits"]


class Shown(WanPipeline):
    """A tiny pipeline that is called as on the pages: by a prompt and a number of steps."""

    def __call__(self, prompt, num_inference_steps=50, **more):
        return super().__call__(prompt, num_inference_steps=num_inference_steps, **{**tiny.WAN_CALL, **more})


def pipeline() -> Any:
    pipe = tiny.wan_pipeline()
    pipe.__class__ = Shown
    return pipe


def shown() -> dict[str, Any]:
    """What the pages take for granted."""
    return {"vaccel": vaccel, "pipe": pipeline(), "small": tiny.wan_small(), "prompt": PROMPTS[0], "prompts": PROMPTS}


def with_calibrations() -> dict[str, Any]:
    from vaccel import demo

    weights = Path(demo.__file__).parent / "weights"
    for name in ("forecast.json", "lemica.json", "mixcache.json"):
        Path(name).symlink_to(weights / name)
    return shown()


def own_loop() -> dict[str, Any]:
    from vaccel.planning.flow import Flow

    levels = [1 - i / 50 for i in range(51)]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 2, 4, 4, generator=generator)

    def large(x, t, condition):
        return torch.sin(x + condition) * t

    def small(x, t, condition):
        return torch.sin(x + condition) * t * 0.9

    class Solver:
        def step(self, v, t, x):
            return x - v / 50

    def sample(denoiser, prompt):
        z = x
        with denoiser.run(50, flow=Flow(levels)) as run:
            for i, t in enumerate(levels[:-1]):
                z = z - run.step(i, torch.tensor([t]), z, 0.1, 0.0) / 50

    return {**shown(), "large": large, "small": small, "timesteps": [torch.tensor([t]) for t in levels[:-1]], "x": x,
            "cond": 0.1, "uncond": 0.0, "solver": Solver(), "sample": sample,
            "text": torch.zeros(1, 8, tiny.wan_transformer().config.text_dim)}  # fmt: skip


def serving() -> dict[str, Any]:
    from vaccel.planning.flow import Flow

    def noise(seed):
        return torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(seed))

    transformer = tiny.wan_transformer()
    text = {"text": torch.ones(1, 8, transformer.config.text_dim)}
    return {**shown(), "torch": torch, "Flow": Flow, "transformer": transformer, "noise": noise, "text": text,
            "no_text": {"text": -text["text"]}}  # fmt: skip


def distilled() -> dict[str, Any]:
    from vaccel.demo import family

    shipped = family.load()
    Path("experts").symlink_to(shipped.folder / "dual_expert")

    class Called(type(shipped.pipe)):
        def __call__(self, prompt, **more):
            return super().__call__(prompt, **{**shipped.call, **more})

    shipped.pipe.__class__ = Called
    return {"vaccel": vaccel, "pipe": shipped.pipe, "prompt": "a red circle moves left slowly on a gray background"}


#: What stands before a page's first block, where that is more than a pipeline.
BEFORE: dict[str, Callable[[], dict[str, Any]]] = {
    "docs/calibrate.md": with_calibrations,
    "docs/methods/auto.md": with_calibrations,
    "docs/methods/forecast.md": with_calibrations,
    "docs/methods/lemica.md": with_calibrations,
    "docs/methods/mixcache.md": with_calibrations,
    "docs/methods/dual-expert.md": distilled,
    "docs/own-loop.md": own_loop,
    "docs/serving.md": serving,
}
#: Pages whose blocks run in tests of their own.
ELSEWHERE = {"docs/comfyui.md": "test_comfyui.py", "docs/parallel.md": "test_parallel.py"}


def test_pages_with_code_are_found():
    assert {"README.md", "docs/index.md", "docs/own-loop.md"} <= set(PAGES)
    assert all((ROOT / "tests" / name).exists() for name in ELSEWHERE.values())


@pytest.mark.parametrize("page", sorted(set(PAGES) - set(ELSEWHERE)))
def test_its_code_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = BEFORE.get(page, shown)()
    for block in PAGES[page]:
        exec(compile(block, page, "exec"), names)
    for value in names.values():
        if isinstance(value, vaccel.Handle):
            value.remove()


def test_every_page_is_in_the_navigation():
    told = (ROOT / "mkdocs.yml").read_text()
    for path in (ROOT / "docs").rglob("*.md"):
        assert str(path.relative_to(ROOT / "docs")) in told, f"{path.name} is not in mkdocs.yml"


def test_the_readme_fits_on_a_few_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda p: p.stem)
def test_links_lead_somewhere(page):
    """Pictures too, which the site's own check does not look at where they stand in HTML."""
    found = re.findall(r"\]\(([^)#]+)[^)]*\)|src(?:set)?=\"([^\"]+)\"", page.read_text())
    for link in filter(None, (a or b for a, b in found)):
        if not link.startswith("http"):
            assert (page.parent / link.replace("\n", "")).exists(), link


def test_every_room_is_drawn_and_told_of():
    drawn, told = (ROOT / "docs" / "draw_rooms.py").read_text(), (ROOT / "docs" / "architecture.md").read_text()
    for room in (path.parent.name for path in (ROOT / "vaccel").glob("*/__init__.py")):
        assert f'"{room}":' in drawn, f"docs/draw_rooms.py knows no {room}"
        assert f"`{room}/`" in told, f"docs/architecture.md knows no {room}"
