"""Kernels prove themselves in a process of its own; what is wrong, crashes or hangs is never used."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import tiny
import torch
from rehearsal import Rehearsal

import vaccel
import vaccel.capture
from vaccel import certify as module
from vaccel import proving
from vaccel.ops import certified
from vaccel.ops.certified import Table
from vaccel.ops.inner import NAMES, _by_size, bound, inner

CPU = torch.device("cpu")
native = pytest.mark.skipif(not vaccel.ops.native(), reason="without compiled kernels there is nothing to prove")

PLANTED = """
import os, sys, time, torch
from vaccel import proving
import vaccel.ops.inner
inner = sys.modules["vaccel.ops.inner"]

def wrong(x): return torch.ops.vaccel.norm(x) * 1.01
def slow(a, b): time.sleep(60)
def dead(a, b): os.kill(os.getpid(), 11)
def refuses(*arguments): raise RuntimeError("no kernel image")

planted = {"norm": wrong, "cosine": slow, "relative_l1": dead, "cfg_combine": refuses}
plainly = inner.bound
inner.bound = lambda name, impl: planted.get(name, plainly(name, impl)) if impl == "cpp" else plainly(name, impl)
proving.main()
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "SIZES", (2**10, 2**12))
    return tmp_path


def row(op="norm", impl="cpp", dtype="float32", elements=1024, us=1.0, torch_us=2.0, passed=True, why=""):
    return {"op": op, "impl": impl, "dtype": dtype, "elements": elements, "us": us, "torch_us": torch_us,
            "passed": passed, "why": why}  # fmt: skip


def test_the_fastest_that_was_right_is_chosen():
    rows = [
        row(us=1.0), row(elements=65536, us=1.95), row(elements=2**20, us=1.0), row(impl="triton", us=0.5),
        row(impl="triton", elements=2**20, us=0.5),
        row(op="cosine"), row(op="cosine", elements=2**20, passed=False, why="off by 3"),
    ]  # fmt: skip
    table = Table(rows)
    assert table.choice("norm", "float32", 1024) == "triton"
    assert table.choice("norm", "float32", 65536) == "torch", "2.5 % faster are not enough"
    assert table.choice("norm", "float32", 2**25) == "triton", "the largest that was measured stands for more"
    assert table.choice("norm", "bfloat16", 1024) is table.choice("cfg_combine", "float32", 1024) is None
    assert table.choice("cosine", "float32", 1024) == "torch", "wrong once is wrong"
    assert table.limits("norm", "float32") == [(2**13, "triton"), (2**18, "torch"), (float("inf"), "triton")]
    assert table.limits("cosine", "float32") == [(float("inf"), "torch")]
    assert table.notes() == ["kernels: cosine by torch, not by cpp: off by 3"]
    refused = Table(rows, [{"op": "norm", "impl": "triton", "why": "it crashed"}])
    assert refused.choice("norm", "float32", 1024) == "cpp"


def test_sizes_are_told_apart_at_the_call(monkeypatch):
    chosen = []
    monkeypatch.setattr(
        sys.modules["vaccel.ops.inner"], "bound", lambda name, impl: lambda *a, **k: chosen.append(impl)
    )
    norm = _by_size("norm", [(100, "cpp"), (float("inf"), "torch")])
    norm(torch.zeros(1, 100))
    norm(torch.zeros(1, 101))
    combination = _by_size("linear_combination", [(100, "cpp"), (float("inf"), "torch")])
    combination([torch.zeros(200)], None, None, channel_dim=1)
    assert chosen == ["cpp", "torch", "torch"]


@native
def test_every_kernel_is_measured_and_used(cache, monkeypatch):
    told = []
    found = module.certify(CPU, progress=lambda done, total, what: told.append((done, total)))
    assert {r["op"] for r in found.rows} == set(NAMES)
    assert not found.notes()
    assert all(r["us"] > 0 and r["torch_us"] > 0 for r in found.rows)
    assert told[-1] == (len(found.rows), len(found.rows))
    assert json.loads(certified.path_of(CPU).read_text())["of"]["torch"] == torch.__version__
    kept = certified.table(CPU)
    assert kept.rows == found.rows
    for name, each in certified.all_of(NAMES, kept, "bfloat16").items():
        assert getattr(inner(CPU, torch.bfloat16), name) is bound(name, each[0][1]) or len(each) > 1
    monkeypatch.setenv("VACCEL_KERNELS", "torch")
    assert certified.table(CPU) is None
    assert inner(CPU, torch.float32).norm is bound("norm", "torch")


@native
def test_what_is_wrong_hangs_or_crashes_is_refused(cache, tmp_path, monkeypatch):
    """And the pipeline's latents are, bit for bit, those without any kernel."""
    script = tmp_path / "planted.py"
    script.write_text(PLANTED)
    found = module.certify(CPU, each=6.0, command=(sys.executable, str(script)))
    notes = {note.split()[1]: note for note in found.notes()}
    assert sorted(notes) == ["cfg_combine", "cosine", "norm", "relative_l1"]
    assert "off by" in notes["norm"]
    assert "did not come back within 6 s at 1024 elements" in notes["cosine"]
    assert "crashed with signal 11" in notes["relative_l1"]
    assert "no kernel image" in notes["cfg_combine"]
    everything = Table([], [{"op": op, "impl": "cpp", "why": "planted"} for op in NAMES])
    everything.rows = [row(op=op, dtype=d) for op in NAMES for d in ("float32", "bfloat16", "float16")]
    certified.save(CPU, everything)
    certified._table.cache_clear()
    pipe = tiny.wan_pipeline()
    with vaccel.accelerate(pipe, vaccel.Forecast.prior(4)) as handle:
        made = tiny.latents(pipe, steps=8, guidance=5.0)
        notes = handle.trace.notes
    assert sum(note.startswith("kernels: ") for note in notes) == len(NAMES)
    monkeypatch.setenv("VACCEL_KERNELS", "torch")
    with vaccel.accelerate(pipe, vaccel.Forecast.prior(4)) as handle:
        assert torch.equal(tiny.latents(pipe, steps=8, guidance=5.0), made)
        assert not any(note.startswith("kernels: ") for note in handle.trace.notes)


@native
def test_a_process_that_cannot_start_refuses_all(cache):
    found = module.certify(CPU, command=(sys.executable, "-c", "raise SystemExit('out of memory')"))
    assert not found.rows
    assert len(found.notes()) == len(NAMES)
    assert all("out of memory" in note for note in found.notes())
    assert certified.table(CPU).choice("norm", "float32", 1024) is None


@native
def test_a_cache_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SIZES", (2**10,))
    (tmp_path / "vaccel").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(OSError) as raised:  # noqa: PT011  any of them
        module.certify(CPU)
    assert raised.value.table.rows
    assert certified.table(CPU) is None


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"rows": 3, "refused": []}', "{"])
def test_a_damaged_table_is_none(cache, text):
    path = certified.path_of(CPU)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    certified._table.cache_clear()
    assert certified.table(CPU) is None
    assert callable(inner(CPU, torch.float32).norm)


@native
def test_the_command_line(tmp_path):
    environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", "from vaccel import certify; certify.SIZES = (1024,); from vaccel.__main__ import "
               "main; main()", "doctor", "--certify"]  # fmt: skip
    said = subprocess.run(command, capture_output=True, text=True, env=environ, check=True).stdout
    assert all(name in said for name in NAMES)
    refused = subprocess.run(
        command, capture_output=True, text=True, env={**environ, "VACCEL_KERNELS": "torch"}, check=False
    )
    assert refused.returncode != 0
    assert "VACCEL_KERNELS" in refused.stdout + refused.stderr


def test_a_gpu_is_certified_at_its_first_use_and_never_in_the_way(cache, monkeypatch, caplog):
    """Once in a process; an error in it is a line of the log."""
    gpu, calls = torch.device("cuda", 0), []
    monkeypatch.setattr(module, "_TRIED", set())
    monkeypatch.setattr(certified, "table", lambda device: None)
    monkeypatch.setattr(certified, "implementations", lambda device: ["cuda"])

    def failing(device, most):
        calls.append((device, most))
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(module, "certify", failing)
    for _ in range(2):
        module.first_use(gpu)
    module.first_use(CPU)
    assert calls == [(gpu, module.FIRST)]
    assert "out of memory" in caplog.text
    monkeypatch.setattr(module, "_TRIED", set())
    monkeypatch.setenv("VACCEL_KERNELS", "torch")
    module.first_use(gpu)
    assert len(calls) == 1


def by(kernel):
    """``bound`` with this kernel for the implementation "cpp"."""
    return lambda name, impl: kernel if impl == "cpp" else bound(name, impl)


PLANTED_SHAPES = {
    "in rows of odd length": lambda x: x.shape[-1] % 2 == 1 and x[0].numel() % 2 == 1,
    "past a boundary": lambda x: x.storage_offset() == 1,
}


@pytest.mark.parametrize("where", PLANTED_SHAPES)
def test_a_kernel_that_is_wrong_somewhere_is_refused(where, monkeypatch):
    def kernel(x):
        return bound("norm", "torch")(x) * (1.1 if PLANTED_SHAPES[where](x) else 1.0)

    monkeypatch.setattr(sys.modules["vaccel.ops.inner"], "bound", by(kernel))
    row = proving.measured(CPU, "norm", "cpp", "float32", "4096")
    assert row["passed"] is False
    assert row["why"].endswith(f"at 4096 elements in float32 {where}")


def test_channels_that_lie_last_are_tried(monkeypatch):
    def kernel(tensors, weights, out, channel_dim):
        bound("linear_combination", "torch")(tensors, weights, out, 1 if channel_dim == 1 else channel_dim)
        if channel_dim == 2:
            out[..., -1] = 0

    monkeypatch.setattr(sys.modules["vaccel.ops.inner"], "bound", by(kernel))
    row = proving.measured(CPU, "linear_combination", "cpp", "float32", "4096")
    assert row["why"].endswith("with channels last")


def test_too_little_memory_is_no_fault(monkeypatch):
    """The size is left out; what is chosen for smaller ones is used, and a line says so."""

    def kernel(x):
        if x.numel() > 2000:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return bound("norm", "torch")(x)

    monkeypatch.setattr(sys.modules["vaccel.ops.inner"], "bound", by(kernel))
    rows = [proving.measured(CPU, "norm", "cpp", "float32", size) for size in ("1024", "4096")]
    assert [r["passed"] for r in rows] == [True, None]
    table = Table([{**r, "us": 1.0, "torch_us": 2.0} for r in rows])
    assert table.limits("norm", "float32") == [(float("inf"), "cpp")]
    assert table.notes() == ["kernels: no memory for 4096 elements in float32: what is chosen for smaller ones is used"]


@native
def test_shapes_in_use_are_measured_too(cache, monkeypatch):
    monkeypatch.setattr(module, "SIZES", (2**10,))
    found = module.certify(CPU, shapes=["1x16x4x10x12"])
    own = [r for r in found.rows if r.get("shape") == [1, 16, 4, 10, 12]]
    assert {r["op"] for r in own} == set(NAMES)
    assert {r["elements"] for r in own} == {7680}
    assert not found.notes()
    for wrong in ("16x", "4x4", "1x0x3", "latents"):
        with pytest.raises(ValueError, match=r"shape"):
            module.certify(CPU, shapes=[wrong])


def test_a_compiled_formula_is_timed_beside_it(monkeypatch):
    monkeypatch.setattr(proving, "COMPILED_FROM", 1024)
    monkeypatch.setattr(torch, "compile", lambda f, **options: f)  # the compiler itself takes ten seconds
    row = proving.measured(CPU, "norm", "torch", "float32", "1024", compiled=True)
    assert row["passed"]
    assert row["compiled_us"] > 0
    assert "compiled_us" not in proving.measured(CPU, "norm", "torch", "float32", "1024")

    def none(f, **options):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", none)
    assert proving.measured(CPU, "norm", "torch", "float32", "1024", compiled=True)["compiled_us"] is None


@pytest.mark.parametrize("other", [{"name": "L4"}, {"multi_processor_count": 16}, {"major": 12}])
def test_each_kind_of_gpu_and_each_slice_of_one_has_its_own_table(other, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    whole = {"name": "H100", "major": 9, "minor": 0, "multi_processor_count": 132}
    places = [type("Properties", (), whole), type("Properties", (), {**whole, **other})]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: places[device.index])
    certified._name.cache_clear()
    first, second = (torch.device("cuda", i) for i in (0, 1))
    certified.save(first, Table([row(us=1.0)]))
    assert certified.table(first) is not None
    assert certified.table(second) is None
    certified._name.cache_clear()


# -- captured steps ----------------------------------------------------------------------------------------------------

CAPTURING = """
import os, sys, time
sys.path.insert(0, {tests!r})
import torch
from rehearsal import Rehearsal
from vaccel import proving

class Planted(Rehearsal):
    def capture(self, function):
        what = {what!r}
        if what == "hangs":
            time.sleep(60)
        if what == "crashes":
            os.kill(os.getpid(), 11)
        if what == "fails":
            raise RuntimeError("operation not permitted")
        replay, outputs = super().capture(function)
        if what == "wrong":
            return lambda: None, outputs
        return replay, outputs

proving.graph_backend = Planted
proving.main()
{after}
"""


@pytest.fixture
def capturing(cache, tmp_path, monkeypatch):
    """Certifies with a backend for CPU tensors in the measuring process, and no kernels."""
    monkeypatch.setattr(vaccel.capture, "DEVICES", ("cuda", "cpu"))
    monkeypatch.setattr(module, "SIZES", (2**10,))
    monkeypatch.setattr(certified, "implementations", lambda device: [])

    def certify(what="", after="", **options):
        script = tmp_path / "capturing.py"
        tests = os.path.dirname(__file__)
        script.write_text(CAPTURING.format(tests=tests, what=what, after=after))
        return module.certify(CPU, command=(sys.executable, str(script)), **options)

    return certify


def test_captured_steps_are_certified(capturing):
    assert certified.without_graphs(CPU) == "not certified on this device (vaccel doctor --certify)"
    found = capturing()
    assert found.graphs["passed"] is True, found.graphs
    assert 50 <= found.graphs["operations"] <= 60
    assert found.graphs["launch_us"] > 0 < found.graphs["replay_us"]
    assert certified.table(CPU).graphs == found.graphs
    assert certified.without_graphs(CPU) == ""


@native
def test_a_kernel_that_is_chosen_is_in_the_captured_chain(capturing, monkeypatch):
    rows = [row(op="cfg_combine", elements=2**16), row(op="direction_magnitude", elements=2**16, us=9.0)]
    found = module._graphs([], Table(rows), 0)
    assert found == proving.unproven("not reached in time")
    seen = []
    monkeypatch.setattr(module, "_events", lambda command, cells, limit: seen.extend(cells) or [{"ended": ""}])
    module._graphs([], Table(rows), 1)
    assert seen == [("graphs", "cfg_combine", "cpp", str(proving.CHAIN))]
    backend = Rehearsal()
    monkeypatch.setattr(proving, "graph_backend", lambda: backend)
    for op in module.IN_CHAIN:
        assert proving.graphs_measured(CPU, op, "cpp", "1024")["passed"], op
    assert backend.captured == len(module.IN_CHAIN)


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("wrong", "3 of 3 replays differ"), ("fails", "operation not permitted"), ("crashes", "crashed with signal 11"),
        ("hangs", "did not come back within 6 s"),
    ],
)  # fmt: skip
def test_captures_that_go_wrong_are_refused(what, why, capturing):
    found = capturing(what, each=6.0 if what == "hangs" else 60.0)
    assert found.graphs["passed"] is False
    assert why in found.graphs["why"]
    assert certified.without_graphs(CPU) == f"not right on this device: {found.graphs['why']}"


def test_a_process_that_crashes_after_its_captures_is_not_trusted(capturing):
    found = capturing(after="os.kill(os.getpid(), 6)")
    assert found.graphs == proving.unproven("it crashed with signal 6")


def test_tables_of_before_certify_no_graphs(cache, monkeypatch):
    certified.save(CPU, Table([row()]))
    assert "graphs" not in json.loads(certified.path_of(CPU).read_text())
    assert certified.table(CPU).graphs is None
    assert "not certified" in certified.without_graphs(CPU)
    certified.save(CPU, Table([row()], [], {"passed": "yes"}))
    certified._table.cache_clear()
    assert "not right" in certified.without_graphs(CPU)
    certified.save(CPU, Table([row()], [], {"passed": True}))
    certified._table.cache_clear()
    assert certified.without_graphs(CPU) == ""
    monkeypatch.setenv("VACCEL_KERNELS", "torch")
    assert certified.without_graphs(CPU) == "VACCEL_KERNELS=torch leaves them out"
