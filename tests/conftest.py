"""One thread a test process, its children included: the tensors are tiny, and other workers want the other cores.

Without a GPU the Triton kernels run under Triton's interpreter, in the same processes as everything else.
"""

import fnmatch
import gc
import importlib.util
import os
import signal
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in what the tests start

import hypothesis
import pytest
import torch

if not torch.cuda.is_available() and importlib.util.find_spec("triton"):
    # Read when Triton and vaccel are imported.  It lets impl="triton" take CPU tensors and changes nothing else.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import tiny

import vaccel

# Times are no test's business: an example may take long where other work goes on.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

torch.set_num_threads(1)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests of Ctrl-C send it, and children inherit it

#: A polynomial that makes TeaCache skip on the tiny random models.
COEFFICIENTS = (1.0, 0.0)


#: What takes longest is begun first, so that the workers end together.
LONG = (
    "test_compile",
    "test_graphs",
    "test_distill_training",
    "test_distill_sharded",
    "test_gpu_suite",
    "test_demo",
    "test_checker",
)


#: Marked ``fast``: of every room the tests that say most in a second, 20 seconds of one core in all.  Shell patterns
#: of what follows ``tests/`` in a test's name; ``[`` is written ``?``.
FAST = (
    # ops and their kernels, Triton's under its interpreter
    "ops/*_any_layout*",
    "ops/*_special_values*",
    "ops/*_refuses",
    "ops/test_norm.py::*_registered*",
    # actions, cache, signals and engine, on tiny models
    "test_oracle.py::test_direction_magnitude*unipc?",
    "test_oracle.py::test_sr_diffusion?*unipc?",
    "test_oracle.py::test_teacache?*unipc?",
    "test_mixcache.py::test_mixcache?*unipc*",
    "test_qwen_image.py::*no-cfg-one?",
    "test_step_path.py::*",
    "test_memory.py::*wan-1.0?",
    "test_accelerate.py::test_remove_gives_the_pipeline_back?wan?",
    "test_faults.py::test_fault_6*wan-Run*",
    "test_attention.py::*",
    "test_denoiser.py::*",
    "test_readings.py::*",
    "test_floors.py::*",
    # methods
    "test_methods.py::*",
    "test_forecast.py::test_*calibrat*unipc*",
    # planning
    "test_schedules.py::*edge*",
    "test_schedules.py::*both_choose*",
    "test_schedules.py::*without_the_compiled_core",
    "test_gram.py::*",
    "test_flow.py::*",
    "test_corrections.py::*",
    "test_oracle_forecast.py::*",
    # calibrate
    "test_calibrate_lemica.py::test_a_replay*unipc*",
    "test_calibrate_lemica.py::test_an_edge*unipc*",
    "test_calibrate_mixcache.py::test_what_is_measured?wan-cfg?",
    "test_calibrate_mixcache.py::test_thresholds",
    "test_calibrate_forecast.py::test_inner*unipc*",
    "test_calibrate_forecast.py::test_error_growth_never*",
    # experts and their distillation
    "test_dual_expert.py::test_a_run_is_the_plain_loop?wan*",
    "test_expert_weights.py::test_remove*wan?",
    "test_distill.py::*",
    "test_distill_data.py::TestRecording::*wan*",
    "test_distill_training.py::test_stopped_and_resumed*0.0-semantic?",
    # cli, evaluate, demo
    "test_cli.py::test_help*",
    "test_cli.py::test_doctor",
    "test_cli.py::test_bad*",
    "test_cli.py::test_generate*",
    "test_evaluate.py::test_*contenders*",
    "test_metrics.py::TestNumbers::*",
    "test_demo.py::test_captions_read_back",
    "test_demo.py::test_what_ships*",
    "test_checker.py::test_input_formats*",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """A worker a core for ``-n auto``, as far as memory lets one assume; all of it in one process beside one GPU."""
    return 0 if torch.cuda.is_available() else min(len(os.sched_getaffinity(0)), 8)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config, items):
    """Tests for a GPU are skipped where there is none; where there is one, a missing kernel is a failure."""
    items.sort(key=lambda item: item.path.stem not in LONG)
    found = set()
    for item in items:
        if matching := [p for p in FAST if fnmatch.fnmatchcase(item.nodeid.removeprefix("tests/"), p)]:
            item.add_marker(pytest.mark.fast)
            found.update(matching)
    if config.args == config.getini("testpaths") and (gone := [p for p in FAST if p not in found]):
        warnings.warn(f"conftest's FAST lists tests that are not there: {', '.join(gone)}", stacklevel=1)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


def settle():
    """What is there stays: of imports and compilers a million objects, which the collector would walk every second."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    yield
    if nextitem is None or nextitem.path != item.path:
        settle()


def pytest_collection_finish():
    settle()
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST_")]:
        del os.environ[name]  # a pytest that a test starts is nobody's worker, and measures if it is asked to


@pytest.fixture
def wan():
    return tiny.wan_pipeline()


@pytest.fixture
def small():
    return tiny.wan_small()


@pytest.fixture
def skipping_methods():
    """One config a method, each of which skips some steps of 20 on the tiny pipelines."""
    return [
        vaccel.DirectionMagnitude(threshold=0.005),
        vaccel.SRDiffusion(threshold=0.05),
        vaccel.SRDiffusion(threshold=0.05, rendering=vaccel.TeaCache(threshold=0.5, coefficients=COEFFICIENTS)),
        vaccel.TeaCache(threshold=0.6, coefficients=COEFFICIENTS),
        vaccel.Schedule([0, 1, 2, 6, 10, 19], num_steps=20),
        vaccel.Schedule([0, 1, 2, 6, 10, 19], num_steps=20, reuse="residual"),
        vaccel.LeMiCa((0, 1, 2, 6, 10, 19), 20),
        vaccel.MixCache(theta=1.0, d1=0.3, d2=0.6, cfg_impact=0.1),
        vaccel.MixCache(theta=1.0, d1=0.3, d2=0.6, cfg_impact=0.1, block_branches="both"),
        vaccel.Forecast((0, 1, 2, 6, 10, 19), 20),
        vaccel.EasyCache(threshold=0.3, warmup=3),
    ]
