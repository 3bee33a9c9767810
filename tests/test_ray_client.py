"""``generate --ray ray://...``: a head of ``ray start`` that asks for its token, and a driver that is no part of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import tiny

from vaccel.cluster import actors

ray = pytest.importorskip("ray", reason="the extra test brings Ray, where there is one for this Python")
CALL = [x for a in ("height=32", "width=32", "num_frames=9", "max_sequence_length=8") for x in ("--call", a)]


def free() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def head(monkeypatch):
    """The address of its client's server; ``ray stop`` would end other tests' clusters, so it is a group of its own."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # sockets' paths are short
    port, client = free(), free()
    root = Path(__file__).parent.parent
    said = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 32, "RAY_USAGE_STATS_ENABLED": "0"}
    said["PYTHONPATH"] = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    words = f"--head --block --port={port} --ray-client-server-port={client} --node-ip-address=127.0.0.1 --num-cpus=1"
    words += f" --temp-dir={folder} --include-dashboard=false --object-store-memory={80 * 2**20}"
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", *words.split()], start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", client)) == 0:
                break
        time.sleep(0.2)
    assert process.poll() is None, "ray start has ended"
    yield f"ray://127.0.0.1:{client}"
    everything = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for each in everything:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait(60)
    assert not psutil.wait_procs(everything, timeout=20)[1], "Ray's processes end with the test"
    shutil.rmtree(folder, ignore_errors=True)


def test_a_clip_through_the_client(head, tmp_path):
    tiny.wan_pipeline().save_pretrained(tmp_path / "tinywan")
    (tmp_path / "prompts.txt").write_text("a red cat runs\n")
    words = [sys.executable, "-m", "vaccel", "generate", "--pipeline", "tinywan", "--prompts", "prompts.txt", *CALL]
    words += ["--steps", "4", "-m", "Schedule([0, 2], num_steps=4)", "--out"]
    for name, more in (("one", []), ("many", ["--ray", head])):
        done = subprocess.run([*words, name, *more], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                              check=False)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 clips made, 0 were there" in done.stdout + done.stderr
    one, many = ({p.name: p.read_bytes() for p in (tmp_path / name).glob("*.mp4")} for name in ("one", "many"))
    assert len(one) == 1
    assert one == many


def test_a_client_whose_process_died_tries_again(monkeypatch):
    said = ["Initialization failure from server: Starting Ray client server failed", "ok"]

    def init(*_, **__):
        if (text := said.pop(0)) != "ok":
            raise ConnectionAbortedError(text)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(actors, "_reach", lambda address: None)
    with actors.connected("ray://a:1"):
        assert not said
    said += ["Initialization failure from server: no"] * actors.TRIES + ["ok"]
    with pytest.raises(ConnectionError, match="no Ray cluster at ray://a:1: Initialization failure"):
        actors.connected("ray://a:1").__enter__()
    assert said == ["ok"]


def test_a_token_that_is_asked_for_is_named(monkeypatch):
    def refuses(*_, **__):
        raise ConnectionError("ray client connection timeout")

    monkeypatch.setattr(ray, "init", refuses)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(actors, "_reach", lambda address: None)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    for address, said in (("ray://a:1", "RAY_AUTH_MODE=token"), ("a:1", "RAY_AUTH_MODE=token"), ("auto", "ray start")):
        with pytest.raises(ConnectionError, match=said), actors.connected(address):
            pass
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # then it is something else
    with pytest.raises(ConnectionError) as refused, actors.connected("a:1"):
        pass
    assert "RAY_AUTH" not in str(refused.value)
