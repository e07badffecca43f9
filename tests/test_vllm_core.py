"""What surrounds vLLM's core: its processes end with the worker, its phases are progress, its figures get labels."""

from __future__ import annotations

import asyncio
import json
import logging
import logging.config
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from service.contract import processes
from service.contract.devices import Gpu
from service.contract.engine_settings import parse
from service.contract.memory_policy import MemoryPolicy
from service.engine.memory import MemoryShare
from service.engine.vllm import arguments, phases
from service.engine.vllm.core import Core
from service.engine.vllm.phases import Phases
from service.engine.vllm.stats import Labels, Stats, labelled
from service.model.release import Release, ReleaseError
from tests.box import wait_for
from tests.fake_llm import FakeBackend

PROGRAM = """
import multiprocessing, os, sys, threading, time
from service.engine.vllm.bound import children_bound

def nested():
    print(os.getpid(), flush=True)
    time.sleep(600)

def core():
    worker = multiprocessing.get_context("spawn").Process(target=nested)
    worker.start()
    print(os.getpid(), flush=True)
    time.sleep(600)

def engine():
    with children_bound():
        multiprocessing.get_context("spawn").Process(target=core).start()
    time.sleep(600)

if __name__ == "__main__":
    threading.Thread(target=engine).start()
"""


class Tree:
    """A process with a core, which has a process too."""

    def __init__(self, directory: Path) -> None:
        (directory / "core_program.py").write_text(PROGRAM)
        code = "import runpy, core_program; core_program.threading.Thread(target=core_program.engine).start()"
        path = os.pathsep.join([str(directory), str(Path(__file__).parent.parent)])
        self.worker = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        assert self.worker.stdout
        self.pids = sorted(int(self.worker.stdout.readline()) for _ in range(2))
        self.core = next(pid for pid in self.pids if psutil.Process(pid).ppid() == self.worker.pid)

    def alive(self) -> list[int]:
        return [pid for pid in self.pids if processes.start_ticks(pid) is not None]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    tree = Tree(tmp_path)
    yield tree
    tree.worker.kill()
    tree.worker.communicate()


@pytest.mark.parametrize("is_stopped", [False, True])
def test_the_core_dies_with_its_worker(tree: Tree, is_stopped: bool) -> None:
    """Whatever ends the worker, and with all that the core has started: nothing keeps the memory of a GPU.

    Nor does a core that hangs, for which a worker is replaced.
    """
    assert len(tree.alive()) == 2
    if is_stopped:
        for pid in tree.pids:
            os.kill(pid, signal.SIGSTOP)
    tree.worker.kill()
    wait_for(lambda: not tree.alive())


def test_the_processes_of_a_core_die_with_it(tree: Tree) -> None:
    """The worker lives, and starts another core."""
    os.kill(tree.core, signal.SIGKILL)
    wait_for(lambda: len(tree.alive()) == 0)
    assert tree.worker.poll() is None


def test_a_unit_that_stops_does_not_end_the_core(tree: Tree) -> None:
    """Systemd may send TERM to all processes: the worker still finishes answers."""
    for pid in tree.pids:
        os.kill(pid, signal.SIGTERM)
        status = Path(f"/proc/{pid}/status").read_text()
        blocked = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigBlk"))
        assert blocked >> (signal.SIGTERM - 1) & 1
    assert len(tree.alive()) == 2


def started(backend: FakeBackend, directory: Path) -> Core:
    core = Core(backend, directory / "model", directory)
    asyncio.run(core.start())
    return core


def test_the_next_worker_waits_until_the_memory_is_free(tmp_path: Path) -> None:
    """What an ended worker recorded is killed first; what a living one has is not touched."""
    orphan, neighbour, other = (subprocess.Popen(["sleep", "600"]) for _ in range(3))
    try:
        dead = subprocess.Popen(["true"])
        dead.wait()
        for worker, child in ((dead.pid, orphan), (other.pid, neighbour)):
            record = [(child.pid, processes.start_ticks(child.pid))]
            (tmp_path / f"core-{worker}.json").write_text(json.dumps(record))
        backend = FakeBackend(lambda *_: 1)
        begun: list[int | None] = []
        start = backend.start
        backend.start = lambda model: (begun.append(orphan.poll()), start(model))[1]  # type: ignore[method-assign, func-returns-value]
        core = started(backend, tmp_path)
        assert begun == [-signal.SIGKILL]
        assert neighbour.poll() is None
        assert not (tmp_path / f"core-{dead.pid}.json").exists()
        core.close()
        assert not (tmp_path / f"core-{os.getpid()}.json").exists()
    finally:
        for process in (orphan, neighbour, other):
            process.kill()
            process.wait()


def test_a_pid_that_another_process_has_by_now_is_left_alone(tmp_path: Path) -> None:
    """The record has its start time, too."""
    innocent = subprocess.Popen(["sleep", "600"])
    try:
        (tmp_path / "core-0.json").write_text(json.dumps([(innocent.pid, 1)]))
        started(FakeBackend(lambda *_: 1), tmp_path)
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


@pytest.mark.parametrize("record", ["", "{", "[1]", '[["x", "y"]]', "null"])
def test_a_damaged_record_does_not_keep_a_worker_down(tmp_path: Path, record: str) -> None:
    """It is removed."""
    (tmp_path / "core-0.json").write_text(record)
    started(FakeBackend(lambda *_: 1), tmp_path)
    assert not (tmp_path / "core-0.json").exists()


def test_the_lines_of_vllm_are_the_phases_of_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From every process, through the configuration of its loggers."""
    monkeypatch.setenv(phases.FILE, str(tmp_path / "phase"))
    logging.config.dictConfig(json.loads(phases.logging_config()))
    read = Phases(tmp_path / "phase")
    assert read.read()[0] == "starting vLLM"
    logging.getLogger("vllm.model_loader").info("Loading weights took\n %.1f seconds", 2.0)
    assert read.read() == ("vLLM: Loading weights took 2.0 seconds", 0.0)


def test_the_imports_are_reported_too(tmp_path: Path) -> None:
    """A worker that imports for a minute without a sign counts as hung; each state is new to the master."""
    reports: list[tuple[str, float]] = []
    with phases.reported(lambda *report: reports.append(report), Phases(tmp_path / "phase")):
        wait_for(lambda: reports)
        (tmp_path / "phase").write_text("compiling")
        wait_for(lambda: reports[-1][0] == "vLLM: compiling")
    assert reports[0][0] == "starting vLLM"
    count = len(reports)
    with pytest.raises(RuntimeError), phases.reported(lambda *report: reports.append(report), Phases(tmp_path / "x")):
        raise RuntimeError
    assert len(reports) > count


def test_a_phase_without_lines_makes_progress_while_it_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ever less, and none in the end or if nothing is computed: then the start counts as hung."""
    now, cpu = 0.0, 0.0
    monkeypatch.setattr("service.engine.vllm.phases.time.monotonic", lambda: now)
    monkeypatch.setattr(phases, "_processor_seconds", lambda: cpu)
    read = Phases(tmp_path / "phase")
    busy = []
    for _ in range(100):
        now, cpu = now + 10, cpu + 10
        busy.append(read.read()[1])
    assert busy == sorted(busy)
    assert len(set(busy[:10])) == 10
    assert busy[-1] == busy[-2] == 1.0
    (tmp_path / "phase").write_text("compiling")
    idle = []
    for _ in range(10):
        now += 10
        idle.append(read.read()[1])
    assert set(idle) == {0.0}


def test_the_series_of_vllm_have_the_labels_of_the_host() -> None:
    """Those of the moment: the version changes when weights are replaced."""
    registry = CollectorRegistry()
    labels = Labels("1.0.0", "blue")
    kinds: dict[str, Callable[..., Any]] = {
        "counter": labelled(partial(Counter, registry=registry), lambda: labels),
        "gauge": labelled(partial(Gauge, registry=registry), lambda: labels),
    }
    counter = kinds["counter"](name="vllm:tokens", documentation="x", labelnames=["model_name"]).labels("m")
    gauge = kinds["gauge"](
        name="vllm:info", documentation="x", labelnames=["size"], multiprocess_mode="mostrecent"
    ).labels(size="1")
    counter.inc(2)
    labels = Labels("1.1.0", "blue")
    counter.inc(3)
    gauge.set(1)
    text = generate_latest(registry).decode()
    assert 'vllm:tokens_total{model_name="m",slot="blue",version="1.0.0"} 2.0' in text
    assert 'vllm:tokens_total{model_name="m",slot="blue",version="1.1.0"} 3.0' in text
    assert 'vllm:info{size="1",slot="blue",version="1.1.0"} 1.0' in text


def test_the_counts_of_the_steps_are_those_of_vllm() -> None:
    """A record has no figures of the scheduler, or none of pictures, at times."""
    from types import SimpleNamespace

    stats = Stats()
    stats.record(SimpleNamespace(num_running_reqs=3), None)
    stats.record(None, SimpleNamespace(queries=5, hits=2))
    assert stats == Stats(1, 3, 5, 2)


GIB = 1 << 30
SHAPE = {
    "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 2, "hidden_size": 4096,
    "intermediate_size": 13696, "vocab_size": 151552, "max_position_embeddings": 131072,
}  # fmt: skip


def sized(path: Path, gib: int, **settings: Any) -> Release:
    """A release with weights of this size, on paper."""
    (path / "model").mkdir(parents=True)
    (path / "model/config.json").write_text(json.dumps({"text_config": SHAPE, "dtype": "bfloat16"}))
    with (path / "model/model.safetensors").open("wb") as file:
        file.truncate(gib * GIB)
    return Release(path, "1.0.0", parse({"engine": "vllm", **settings}), ())


@pytest.mark.parametrize(("total", "weights", "expected"), [(80, 19, 0.46), (24, 19, 0.93), (24, 8, 0.46)])
def test_the_part_of_a_gpu_is_that_of_the_native_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, total: int, weights: int, expected: float
) -> None:
    """Half of it where two copies fit beside each other, else all of it; vLLM gets it as gpu_memory_utilization."""
    monkeypatch.setattr(arguments, "_gpu_memory", lambda _: (total * GIB, total * GIB))
    sizes, memory = arguments.memory_of_copy(sized(tmp_path, weights), Gpu(0, "GPU-1"), MemoryShare())
    assert sizes.keys() == {"gpu_memory_utilization"}
    assert sizes["gpu_memory_utilization"] == pytest.approx(expected, abs=0.011)
    assert memory == pytest.approx(sizes["gpu_memory_utilization"] * total * GIB, rel=0.01)


def test_a_copy_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the figures, rather than by vLLM."""
    monkeypatch.setattr(arguments, "_gpu_memory", lambda _: (24 * GIB, 24 * GIB))
    share = MemoryShare(MemoryPolicy(), slots=0)
    with pytest.raises(ReleaseError, match="KV cache"):
        arguments.memory_of_copy(sized(tmp_path, 23), Gpu(0, "GPU-1"), share)


@pytest.mark.parametrize(("dtype", "itemsize"), [("auto", 2), ("fp8", 1)])
def test_a_given_cache_has_its_size_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, itemsize: int
) -> None:
    """Of the numbers that vLLM stores: fp8 needs half."""
    monkeypatch.setattr(arguments, "_gpu_memory", lambda _: (80 * GIB, 80 * GIB))
    release = sized(tmp_path, 1, kv_tokens=10_000, vllm={"kv_cache_dtype": dtype})
    sizes, _ = arguments.memory_of_copy(release, Gpu(0, "GPU-1"), MemoryShare())
    assert sizes == {"kv_cache_memory_bytes": 10_000 * 2 * 40 * 2 * 128 * itemsize}


def test_the_cpu_has_no_sleep_mode(tmp_path: Path) -> None:
    """A release that asks for it starts without, and a swap ends its workers; on a GPU it is the release's."""
    release = sized(tmp_path, 1, kv_tokens=1024, vllm={"enable_sleep_mode": True})
    sizes, memory = arguments.memory_of_copy(release, None, MemoryShare())
    assert memory == 0
    found = arguments.arguments(release, served_model="glm", max_images=1, sizes=sizes)
    assert found["enable_sleep_mode"] is False
    assert arguments.arguments(release, served_model="glm", max_images=1, sizes={})["enable_sleep_mode"] is True


def test_the_arguments_of_a_release(tmp_path: Path) -> None:
    """Its own beside those of the server, which win."""
    release = sized(tmp_path, 1, rows=5, dtype="float16", vllm={"tensor_parallel_size": 2})
    found = arguments.arguments(release, served_model="glm", max_images=3, sizes={"gpu_memory_utilization": 0.4})
    expected = {
        "tensor_parallel_size": 2, "max_num_seqs": 5, "dtype": "float16", "served_model_name": "glm",
        "limit_mm_per_prompt": {"image": 3, "video": 0}, "gpu_memory_utilization": 0.4, "scheduling_policy": "priority",
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected


def test_a_worker_of_a_divided_model_has_several_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other; it sees those alone, and needs a part of the memory on each."""
    from service.contract.devices import gpus_of_workers
    from service.process import gpus
    from service.settings import Settings

    host = [Gpu(number, f"GPU-{number}") for number in range(4)]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "_of_host", lambda: host)
    release = sized(tmp_path, 40, vllm={"tensor_parallel_size": 2})
    found = gpus.find(release, Settings(slot="blue", policy=tmp_path / "none"))
    assert [gpu.label for gpu in found] == ["cuda:0+1", "cuda:2+3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    gpus.pin(found[1])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-2,GPU-3"
    monkeypatch.setattr(arguments, "_gpu_memory", lambda gpu: (48 * GIB, (48 - gpu.index) * GIB))
    sizes, _ = arguments.memory_of_copy(release, found[0], MemoryShare())
    assert 0.4 < sizes["gpu_memory_utilization"] < 0.5  # two copies of 20 GiB fit on each
    with pytest.raises(ValueError, match="needs 2 GPUs"):
        gpus_of_workers("auto", host[:1], 0, "blue", 2)
    with pytest.raises(ValueError, match="2 GPUs of its own"):
        gpus_of_workers("auto", host[:3], 2, "blue", 2)


@pytest.mark.parametrize("size", [0, -1, 65, "2", 1.5, True, None])
def test_a_model_is_divided_among_a_number_of_gpus(size: Any) -> None:
    """Anything else would be found by vLLM, when the slot starts."""
    with pytest.raises(ValueError, match="tensor_parallel_size"):
        parse({"engine": "vllm", "vllm": {"tensor_parallel_size": size}})


def test_a_worker_holds_memory_on_each_of_its_gpus() -> None:
    """Which a swap frees on each."""
    from service.contract.worker_state import WorkerState

    state = WorkerState.of_this_process(slot="blue", generation=1, version="1.0.0", device="cuda:0+1")
    state.memory = 7
    assert [state.memory_on(f"cuda:{number}") for number in range(3)] == [7, 7, 0]
    assert state.memory_on("cuda:0+1") == 7
