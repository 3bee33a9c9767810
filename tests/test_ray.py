"""Clips by Ray's actors on two local nodes: whatever is killed, every clip is made once and the manifest is whole.

The workers make clips of nothing, so that none of them waits for torch; ``test_ray_commands.py`` has real ones.
"""

from __future__ import annotations

import collections
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from crew_double import FINGERPRINT, Large, content_of
from ray_double import PROMPTS, made

from vaccel.batch.manifest import Manifest, jobs_of
from vaccel.cluster import actors

ray = pytest.importorskip("ray", reason="the extra test brings Ray, where there is one for this Python")
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of a CPU each, and a connection."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]))
        yield from started(Cluster)


def started(kind):
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    made = kind(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    made.add_node(**NODE)
    with actors.connected(made.address):
        yield made
    made.shutdown()
    left = [p for p in psutil.Process().children(recursive=True) if p.pid not in before and "ray" in p.name()]
    _, running = psutil.wait_procs(left, timeout=20)
    assert not running, "Ray's processes end with the tests"


def lines(folder: Path) -> list[dict]:
    path = folder / "manifest.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def whole(folder: Path) -> None:
    """Every clip once, as it is made alone, and nothing else."""
    found = lines(folder)
    assert collections.Counter(one["prompt"] for one in found) == dict.fromkeys(PROMPTS, 1)
    manifest = Manifest(folder, FINGERPRINT)
    for job in jobs_of(PROMPTS):
        assert manifest.finished(job)
        assert (folder / manifest.name(job)).read_bytes() == content_of(job.prompt, job.seed)
    assert len(list(folder.iterdir())) == len(PROMPTS) + 1


def workers() -> list[psutil.Process]:
    """The processes in which a clip is being made."""
    return [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [""])[0].startswith("ray::Slow")]


def once(condition, then, seconds: float = 40) -> threading.Thread:
    """Does something in a thread, once a condition holds."""

    def wait() -> None:
        until = time.monotonic() + seconds
        while not condition() and time.monotonic() < until:
            time.sleep(0.02)
        then()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_node_is_killed_in_the_middle(cluster, tmp_path):
    said: list[str] = []
    node = next(node for node in cluster.list_all_nodes() if node != cluster.head_node)

    def making() -> list[psutil.Process]:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        return [p for p in raylet.children() if (p.cmdline() or [""])[0].startswith("ray::Slow.work")]

    def die() -> None:  # all of a machine at once
        for process in making():
            process.kill()
        cluster.remove_node(node, allow_graceful=False)

    thread = once(lambda: len(lines(tmp_path)) >= 2 and making(), die)
    made(ray, tmp_path, count=4, said=said.append)
    thread.join()
    whole(tmp_path)
    assert any("was lost" in text and "another takes its task" in text for text in said), said
    assert made(ray, tmp_path, count=1) == [], "nothing is left to do"
    cluster.add_node(**NODE)


def test_a_workers_process_is_killed(cluster, tmp_path):
    said: list[str] = []
    thread = once(lambda: len(lines(tmp_path)) >= 2 and workers(), lambda: workers()[0].send_signal(signal.SIGKILL))
    made(ray, tmp_path, said=said.append)
    thread.join()
    whole(tmp_path)
    assert any("was lost" in text for text in said), said


def test_a_driver_is_killed_and_started_again(cluster, tmp_path):
    command = [sys.executable, str(HERE / "ray_double.py"), cluster.address, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as driver:
        until = time.monotonic() + 120
        while len(lines(tmp_path)) < 2 and time.monotonic() < until and driver.poll() is None:
            time.sleep(0.02)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    before = len(lines(tmp_path))
    assert 2 <= before < len(PROMPTS)
    found = made(ray, tmp_path)  # its workers' places are free again, or this would wait for ever
    assert len(found) in (len(PROMPTS) - before, len(PROMPTS) - before + 1)
    (tmp_path / "manifest.jsonl.lock").unlink(missing_ok=True)
    whole(tmp_path)


def test_what_is_too_large_is_not_fetched(cluster, tmp_path, monkeypatch):
    """Ray tells how large an answer is before it comes over."""
    kind = actors.Actors(ray, actors.Places(1, 1, 0.0, 0.5), Large)
    worker = kind.start()
    call = kind.call(worker, "work", b"")
    while not kind.over([call], 1.0):
        pass
    own = ray.get
    monkeypatch.setattr(ray, "get", lambda *args, **options: pytest.fail("it was fetched"))
    with pytest.raises(actors.LostError, match="at most 1048576 are read"):
        kind.answer(call, 2**20)
    monkeypatch.setattr(ray, "get", own)
    assert len(kind.answer(call, 2**22)) == 3 * 2**20
    kind.end(worker)


def test_places(cluster):
    assert actors.places(ray) == actors.Places(2, 1, 0.0)
    assert actors.places(ray, 4) == actors.Places(4, 2, 0.0)
    with pytest.raises(ValueError, match="no machine of the cluster has 1 GPU"):
        actors.places(ray, gpus=1)
    with pytest.raises(ValueError, match=r"a share of a GPU or whole ones, got 1\.5"):
        actors.places(ray, gpus=1.5)


def test_a_class_that_is_not_installed_there(cluster):
    """As where vaccel is missing on a machine: no worker starts, and one line says why."""
    from vaccel.cluster.crew import Crew, CrewError
    from vaccel.cluster.messages import Setup

    kind = type("Missing", (), {"__module__": "nowhere_installed", "hello": lambda self, data: data})
    sys.modules["nowhere_installed"] = module = type(sys)("nowhere_installed")
    module.Missing, module.__file__ = kind, "nowhere_installed.py"
    try:
        with (
            pytest.raises(CrewError, match=r"3 times in a row.*nowhere_installed"),
            Crew(actors.Actors(ray, actors.Places(1, 1, 0.0, 0.5), kind), Setup("clips", "", 4), 1) as crew,
        ):
            crew.open(1)
    finally:
        del sys.modules["nowhere_installed"]
