"""The comparison: contenders as text, honest rows, a report that stands alone."""

from __future__ import annotations

import json
import math
import re
import warnings

import numpy as np
import pytest
import tiny

import vaccel
from vaccel.cli.compare import default_methods
from vaccel.evaluate import compare, metrics, parse_contender, perceptual, write_report
from vaccel.evaluate.clips import contact_sheet, data_uri, write_video
from vaccel.evaluate.observations import observe
from vaccel.experts.files import save_experts
from vaccel.planning import artifacts
from vaccel.planning.trajectory import Trajectory

CALL = {k: v for k, v in tiny.WAN_CALL.items() if k != "output_type"} | {"num_inference_steps": 20}


def test_contenders_are_read_as_they_would_be_called(tmp_path):
    parsed = parse_contender("DirectionMagnitude(0.002, cfg_reuse=False)")
    assert parsed.method == vaccel.DirectionMagnitude(threshold=0.002, cfg_reuse=False)
    assert parsed.needs_small
    nested = parse_contender("SRDiffusion(threshold=0.01, rendering=TeaCache(threshold=0.1, coefficients=[1.0, 0.0]))")
    assert nested.method.rendering == vaccel.TeaCache(threshold=0.1, coefficients=(1.0, 0.0))
    assert nested.group == "SRDiffusion + TeaCache"
    assert parse_contender("TeaCache(preset='wan2.1-t2v-14b')").method.threshold == 0.2
    assert parse_contender("diffusers.SeaCache(threshold=0.3)").options == (("threshold", 0.3),)
    assert parse_contender("steps(25)").num_steps == 25
    fields = {"coefficients": [1.0, 0.0]}
    artifacts.write(tmp_path / "t.json", {"schema": artifacts.SCHEMA, "method": "teacache", "fields": fields})
    assert parse_contender("TeaCache(0.2, artifact='t.json')", tmp_path).method.coefficients == (1.0, 0.0)


def test_experts_are_looked_for_where_artifacts_are(tmp_path):
    (tmp_path / "experts").mkdir()
    here, text = str(tmp_path / "experts"), "DualExpert(folder='experts', steps=3)"
    found = parse_contender(text, tmp_path)
    assert found.method == vaccel.DualExpert(here, steps=3)
    assert (found.label, found.group, found.num_steps) == (text, "DualExpert", 3)
    assert parse_contender("DualExpert('experts')", tmp_path).method.folder == here
    assert parse_contender("DualExpert(artifact='experts')", tmp_path).method.folder == here
    assert parse_contender(f"DualExpert({here!r})", tmp_path / "no").method.folder == here
    assert parse_contender("DualExpert('someone/experts')", tmp_path).method.folder == "someone/experts"


def test_the_demo_compares_what_is_there(tmp_path):
    for name in ("teacache.json", "mixcache.json"):
        (tmp_path / name).touch()
    (tmp_path / "dual_expert").mkdir()
    there = default_methods(tmp_path)
    assert "DualExpert(folder='dual_expert', steps=4)" in there
    assert "TeaCache(artifact='teacache.json', threshold=0.1)" in there
    assert not any("lemica" in m or "teacache_small" in m for m in there)
    (tmp_path / "dual_expert").rmdir()
    assert not any("DualExpert" in m for m in default_methods(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("DualExpert()", "folder"),
        ("DualExpert('x', steps=1)", "at least 2"),
        ("TeaCache", "needs coefficients"),
        ("TeaCache(", "not written like a call"),
        ("Magic(1)", "unknown method 'Magic'"),
        ("diffusers.Magic(a=1)", "unknown cache"),
        ("diffusers.SeaCache(0.3)", "keyword arguments"),
        ("steps(0)", "one positive number"),
        ("steps('a')", "one positive number"),
        ("DirectionMagnitude(threshold=__import__('os'))", "unknown method"),
        ("DirectionMagnitude(threshold=x)", "neither a number"),
        ("DirectionMagnitude(speed=3)", "unexpected keyword"),
        ("DirectionMagnitude(0.1, 0.2)", "name the arguments"),
        ("TeaCache(0.1)", "needs coefficients"),
    ],
)
def test_bad_contenders_say_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        parse_contender(text)


def test_metrics():
    generator = np.random.default_rng(0)
    clip = generator.random((3, 48, 48, 3), dtype=np.float32)
    assert metrics.psnr(clip, clip) == math.inf
    assert metrics.ssim(clip, clip) == pytest.approx(1.0)
    noisy = np.clip(clip + 0.1, 0, 1)
    mse = float(np.mean((clip.astype(np.float64) - noisy) ** 2))
    assert metrics.psnr(clip, noisy) == pytest.approx(10 * math.log10(1 / mse), rel=1e-4)
    assert perceptual.lpips_missing() == "" or perceptual.lpips(clip, noisy) is None


@pytest.fixture
def comparison(wan, small):
    specs = [
        "DirectionMagnitude(0.005)",
        "diffusers.FirstBlockCache(threshold=0.3)",
        "steps(10)",
        "TeaCache(0.0, coefficients=[1.0, 0.0])",
    ]
    contenders = [parse_contender(s) for s in specs]
    with pytest.warns(UserWarning, match="saved nothing"):
        yield compare(wan, contenders, ["a red cat runs"], small=small, call=CALL, checker=lambda c, p: {"finite": 1.0})


def test_rows_are_what_happened(comparison, wan):
    rows = {r.contender.split("(")[0]: r for r in comparison.rows}
    ours, first_block, fewer, never = (
        rows[n] for n in ("DirectionMagnitude", "diffusers.FirstBlockCache", "steps", "TeaCache")
    )
    assert ours.timeline.startswith("FFFF")
    assert ours.forwards["large"] == 2 * ours.timeline.count("F")
    assert 0 < first_block.forwards["large"] < 40
    assert fewer.forwards == {"large": 20, "small": 0}
    assert never.psnr == math.inf
    assert never.forwards == {"large": 40, "small": 0}
    assert ours.psnr < 100
    assert all(r.seconds > 0 and r.full_seconds > 0 for r in comparison.rows)
    assert comparison.small["psnr"] < 100
    assert not wan.transformer.is_cache_enabled
    assert "vaccel" not in wan.transformer._diffusers_hook.hooks


def test_the_report_stands_alone(comparison, wan, small, tmp_path):
    seen = observe(wan, small, ["a red cat runs"], CALL)
    page = write_report(comparison, tmp_path, title="t", facts={"device": "CPU"}, seen=seen).read_text()
    data = json.loads((tmp_path / "report.json").read_text())
    assert {e["contender"] for e in data["summary"]} == {r.contender for r in comparison.rows}
    for label in data["summary"]:
        assert label["contender"].replace("'", "&#39;") in page
    differing = [r for r in comparison.rows if r.psnr < math.inf]  # each has a pair under "Where it fails"
    assert len(differing) == 3
    assert page.count("data:image/png;base64,") == len(comparison.clips) + 2 * len(differing)
    assert page.count("<svg") == 2
    assert not re.search(r'(src|href)="(?!data:|#)', page), "the page fetches something"
    assert (tmp_path / "contact_sheet_0.png").stat().st_size > 1000
    assert "Distilled experts" not in page
    assert "noise levels" not in page
    assert set(seen.direction) == {"small", "residual, lag 1", "residual, lag 3", "residual, lag 6"}


@pytest.fixture
def experts(wan, tmp_path):
    """A folder of experts of another seed's weights, with a diagnosis beside them."""
    folder = tmp_path / "experts"
    state = tiny.wan_transformer(5).state_dict()
    path = Trajectory(shift=5.0)
    save_experts(folder, wan.transformer, trajectory=path, boundary=0.7, semantic=state)
    curve = {"points": [0, 5, 9], "sigma": [0.3, 0.8, 1.0], "loss": [1e-4, 1e-2, 0.1], "gradient": [0.1, 1.0, 5.0]}
    curve |= {"boundary": 0.9, "settings": {}}
    (folder / "diagnosis.json").write_text(json.dumps({"curves": {"teacher": curve, "trained": curve}}))
    return folder


def test_experts_are_compared_and_their_diagnosis_is_shown(experts, wan, tmp_path):
    contenders = [parse_contender(f"DualExpert('experts', steps={n})", tmp_path) for n in (2, 4)]
    call = {**CALL, "num_inference_steps": 6}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = compare(wan, contenders, ["a red cat runs"], call=call, checker=lambda c, p: {"right": 1.0})
    assert [r.timeline for r in result.rows] == ["ee", "eeee"]
    assert [r.forwards for r in result.rows] == [{"large": 2, "small": 0}, {"large": 4, "small": 0}]
    page = write_report(result, tmp_path / "out", title="t", facts={}).read_text()
    assert "the checker's score of the clip itself (right) is" in page
    assert page.count("Loss and gradient over the noise levels") == 1
    assert page.count("<svg") == 2
    for text in ("semantic", "detail", "consistency loss", "gradient norm", "teacher", "trained"):
        assert f"<!-- {text} -->" in page, "matplotlib writes the words beside their outlines"
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert data["noise_levels"][0]["trained"]["loss"] == [1e-4, 1e-2, 0.1]
    (experts / "diagnosis.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"diagnosis.json: curves is missing"):
        page = write_report(result, tmp_path / "out", title="t", facts={}).read_text()
    assert "noise levels" not in page


def test_experts_are_asked_for_the_steps_they_make(experts, wan, tmp_path):
    contender = parse_contender("DualExpert('experts', steps=3)", tmp_path)
    with contender.applied(wan, None) as handle:
        wan("a red cat runs", **{**CALL, "num_inference_steps": contender.num_steps})
        assert handle.trace.notes == []


def test_ctrl_c_keeps_what_was_done(wan, small, tmp_path):
    contenders = [parse_contender("DirectionMagnitude(0.005)"), parse_contender("steps(10)")]

    def stop(done, total, what):
        if what.startswith("steps"):
            raise KeyboardInterrupt

    log = tmp_path / "rows.jsonl"
    result = compare(wan, contenders, ["a red cat runs"], small=small, call=CALL, progress=stop, log=log)
    assert not result.complete
    assert [r.contender for r in result.rows] == ["DirectionMagnitude(0.005)"]
    assert json.loads(log.read_text())["contender"] == "DirectionMagnitude(0.005)"
    assert "Stopped before the end" in write_report(result, tmp_path, title="t", facts={}).read_text()


def test_a_missing_small_model_is_said_before_anything_runs(wan):
    with pytest.raises(ValueError, match="needs a small model"):
        compare(wan, [parse_contender("SRDiffusion(0.01)")], ["a red cat runs"], call=CALL)


def test_clips(tmp_path):
    clip = np.random.default_rng(0).random((5, 48, 48, 3), dtype=np.float32)
    assert data_uri(clip)[1] is False
    for name in ("a.gif", "a.mp4", "a.png"):
        write_video(tmp_path / name, clip)
        assert (tmp_path / name).stat().st_size > 500
    assert contact_sheet([clip, clip], columns=3).shape == (200, 300, 3)
