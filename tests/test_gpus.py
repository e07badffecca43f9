"""The GPUs of each slot and of each worker, on hosts with a fake NVML of 1, 2 and 4 cards."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from rich.console import Console

from deploy.commands.status import _table
from deploy.errors import Refused
from deploy.host import Host
from deploy.policy import Policy
from deploy.releases.store import Manifest
from deploy.releases.store import Release as StoredRelease
from deploy.reports import report
from deploy.reports.overview import _devices
from deploy.rollout import memory, need
from deploy.rollout.gpus import of_release
from deploy.rollout.memory import NoRoom
from deploy.systemd.units import Addresses, render
from service.contract.device_memory import Copy
from service.contract.devices import Devices, Gpu
from service.contract.engine_settings import EngineSettings
from service.contract.generations import Generation, current
from service.contract.worker_state import WorkerState
from service.engine import loader
from service.model.release import Release
from service.process import gpus, worker
from service.process.worker import SlotWorker
from service.settings import Settings
from tests.box import CODE, kill, wait_for
from tests.fake_nvml import pynvml
from tests.release_fixtures import host_in

FAKE = Path(pynvml.__file__).parent
CARDS = (1, 2, 4)


@contextmanager
def host_with(cards: int, devices: str = "", **variables: object) -> Iterator[Host]:
    """A host with so many cards; `devices`: the lines of [devices]; `variables`: of the settings of the service."""
    environment = {"FAKE_GPUS": str(cards)} | {name: str(value) for name, value in variables.items()}
    with tempfile.TemporaryDirectory() as directory:
        host = host_in(Path(directory))
        host.settings.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
        if devices:
            host.policy.write_text(f"[devices]\n{devices}\n")
        with patch.dict(sys.modules, pynvml=pynvml), patch.dict(os.environ, environment):
            yield host


def of_service(host: Host, slot: str, device: str) -> list[int]:
    """The numbers of the GPUs that the workers of a generation get."""
    release = Release(Path("/nowhere/1"), "1", EngineSettings(device=device), ())
    found = gpus.find(release, Settings(slot=slot, policy=host.policy))
    return [gpu.index for gpu in found]


def of_preflight(host: Host, slot: str, device: str) -> list[int]:
    """The numbers of the GPUs whose memory preflight looks at."""
    manifest = Manifest(version="1", created_at="", files=(), engine={"device": device})
    return [gpu.index for gpu in of_release(StoredRelease(Path("/nowhere/1"), manifest), host, slot)]


@pytest.mark.parametrize("cards", CARDS)
def test_both_slots_have_all_gpus_by_default(cards: int) -> None:
    """Without [devices] each slot has a worker on every card."""
    with host_with(cards) as host:
        for slot in ("blue", "green"):
            assert of_service(host, slot, "auto") == list(range(cards))


def test_the_slots_may_have_gpus_of_their_own() -> None:
    """[devices] gives blue some and green others, by number or UUID, and preflight looks at the candidate's alone."""
    with host_with(4, f'blue = [1, 0]\ngreen = [3, "{pynvml.uuid(2)}"]') as host:
        assert of_service(host, "blue", "auto") == of_preflight(host, "blue", "cuda") == [1, 0]
        assert of_service(host, "green", "auto") == of_preflight(host, "green", "cuda") == [3, 2]
        assert of_service(host, "green", "cuda:1") == of_preflight(host, "green", "cuda:1") == [2]
        assert of_service(host, "green", "cpu") == of_preflight(host, "green", "cpu") == []
        manifest = Manifest(version="1", created_at="", files=())
        found = of_release(StoredRelease(Path("/nowhere/1"), manifest), host, "green")
        assert min(gpu.free for gpu in found) == 3 << 30


names = st.one_of(st.integers(0, 4), st.integers(0, 4).map(pynvml.uuid), st.just("GPU-0000"))
lists = st.lists(names, min_size=1, max_size=4, unique=True).map(str)
visible = st.one_of(st.none(), st.sampled_from(["", "-1", "1", "1, 0", "0,9,1", pynvml.uuid(1), "MIG-GPU-1/1/0"]))


@settings(deadline=None, max_examples=60)
@given(
    cards=st.sampled_from((0, *CARDS)),
    devices=st.one_of(st.just(""), st.builds("blue = {}\ngreen = {}".format, lists, lists)),
    device=st.sampled_from(["auto", "cpu", "cuda", "cuda:0", "cuda:1", "cuda:3"]),
    workers=st.integers(0, 3),
    visible=visible,
)
def test_both_programs_choose_the_same_gpus(
    cards: int, devices: str, device: str, workers: int, visible: str | None
) -> None:
    """The master gives its workers the GPUs that preflight examined, one each, or both refuse with the same reason."""
    variables = {"GLM_WORKERS": workers} | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    with host_with(cards, devices, **variables) as host:
        try:
            found = of_service(host, "green", device)
        except gpus.GpusError as error:
            reason = str(error).partition(": ")[2]
            with pytest.raises(Refused) as refused:
                of_preflight(host, "green", device)
            assert str(refused.value) == f"1 cannot be served: {reason}"
            return
        if (visible and visible.startswith("MIG")) or (not cards and device.startswith("cuda")):
            assert found == []  # left to the engine
            return
        assert found == of_preflight(host, "green", device)
    assert len(set(found)) == len(found) <= cards
    if found and workers:
        assert len(found) == workers


@pytest.mark.parametrize(
    ("cards", "devices", "device", "variables", "reason"),
    [
        (2, "blue = [0]\ngreen = [2]", "auto", {}, "gives green the GPU 2, and this host has 2 GPUs (0, 1)"),
        (0, "blue = [0]\ngreen = [0]", "auto", {}, "gives green the GPU 0, and this host has 0 GPUs"),
        (2, f'blue = [0]\ngreen = [0, "{pynvml.uuid(0)}"]', "auto", {}, "gives green the GPU 0 twice"),
        (4, 'blue = [0]\ngreen = ["GPU-0000"]', "auto", {}, "with which several UUIDs begin"),
        (2, "", "cuda:2", {}, "needs the device cuda:2, and green has 2 visible GPUs"),
        (4, "blue = [0]\ngreen = [1]", "cuda:1", {}, "needs the device cuda:1, and green has 1 visible GPU"),
        (2, "", "auto", {"GLM_WORKERS": 3}, "GLM_WORKERS is 3, and green has 2 GPUs (0, 1) for the device auto"),
        (2, "", "cuda:1", {"GLM_WORKERS": 2}, "GLM_WORKERS is 2, and green has 1 GPU (1) for the device cuda:1"),
        (2, "", "cuda", {"CUDA_VISIBLE_DEVICES": ""}, "needs the device cuda, and green has 0 visible GPUs"),
    ],
)
def test_what_cannot_be_served_is_refused_with_its_reason(
    cards: int, devices: str, device: str, variables: dict[str, Any], reason: str
) -> None:
    """Both programs name the table or the setting that does not fit the host."""
    with host_with(cards, devices, **variables) as host:
        for choose, error in ((of_service, gpus.GpusError), (of_preflight, Refused)):
            with pytest.raises(error) as refused:
                choose(host, "green", device)
            assert reason in str(refused.value)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("red = [0]", "red is not a slot; the slots are blue and green"),
        ("blue = [0]", "green is missing; name the GPUs of both slots"),
        ("blue = []\ngreen = [0]", "blue is not a list of GPUs, such as [0, 1]"),
        ("blue = 0\ngreen = [0]", "blue is not a list of GPUs"),
        ("blue = [0]\ngreen = [1, 1]", "green has 1 twice"),
        ("blue = [-1]\ngreen = [1]", "blue[0] is -1, not the number or the UUID"),
        ("blue = [0, true]\ngreen = [1]", "blue[1] is True, not the number"),
        ('blue = ["0"]\ngreen = [1]', "blue[0] is '0', not the number"),
        ('blue = ["MIG-1"]\ngreen = [1]', "blue[0] is 'MIG-1', not the number"),
    ],
)
def test_a_wrong_table_is_refused_with_its_key(lines: str, reason: str) -> None:
    """The controller refuses every rollout, and the master its start, with the key and what it may hold."""
    with host_with(2, lines) as host:
        with pytest.raises(Refused) as refused:
            Policy.of(host)
        with pytest.raises(gpus.GpusError) as failed:
            of_service(host, "blue", "auto")
    for error in (refused, failed):
        assert reason in str(error.value)
        assert str(host.policy) in str(error.value)


def test_a_policy_that_the_service_may_not_read() -> None:
    """On a host with GPUs the master does not guess which ones the slot has."""
    with host_with(2, "blue = [0]\ngreen = [1]") as host:
        host.policy.unlink()
        host.policy.mkdir()
        with pytest.raises(gpus.GpusError, match="cannot be read"):
            of_service(host, "blue", "auto")


ALL = [Gpu(number, pynvml.uuid(number)) for number in range(4)]


@given(
    count=st.integers(1, 4),
    deaths=st.lists(st.sets(st.integers(0, 3)), max_size=20),
)
def test_a_worker_that_comes_back_takes_the_gpu_of_the_one_that_died(count: int, deaths: list[set[int]]) -> None:
    """Whichever workers die, together or in turn, each living one has a GPU of its own, and keeps it until it dies."""
    present = ALL[:count]
    running: dict[int, Gpu | None] = {}
    pid = 0
    for dying in [set[int](), *deaths]:
        survivors = {one: gpu for number, (one, gpu) in enumerate(running.items()) if number not in dying}
        running = dict(survivors)
        while len(running) < count:
            pid += 1
            running[pid] = gpus.free(present, running.values())
        assert {one: running[one] for one in survivors} == survivors
        assert sorted(gpu.index for gpu in running.values() if gpu) == list(range(count))


def test_workers_beside_the_others_share_their_gpus_evenly() -> None:
    """HUP starts new workers before the old ones end: each GPU gets one. Without GPUs there is none to hold."""
    held: list[Gpu | None] = []
    for _ in range(8):
        held.append(gpus.free(ALL, held))
    assert held == ALL * 2
    assert gpus.free([], [None]) is None


def test_torch_sees_the_pinned_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA_VISIBLE_DEVICES counts when CUDA is first used: what torch found in the master does not hold in a worker."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "_is_compiled", lambda: True)
    monkeypatch.setattr(torch.cuda, "_raw_device_count_nvml", lambda: len(ALL))
    monkeypatch.setattr(torch.cuda, "_raw_device_uuid_nvml", lambda: [gpu.uuid for gpu in ALL])
    assert torch.cuda.device_count() == 4
    for gpu in ALL:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        gpus.pin(gpu)
        assert torch.cuda.device_count() == 1
        assert torch.cuda._get_nvml_device_index(0) == gpu.index
    assert not torch.cuda._initialized


@pytest.mark.parametrize(("device", "pinned"), [("cuda:3", "cuda"), ("cuda", "cuda"), ("auto", "auto")])
def test_a_pinned_worker_uses_the_gpu_that_it_sees(device: str, pinned: str) -> None:
    """A release for `cuda:N` is loaded on the only device that there is; its other settings are kept."""
    release = Release(Path("/nowhere/1"), "1", EngineSettings(device=device, rows=7), ())
    expected = replace(release, engine=EngineSettings(device=pinned, rows=7))
    assert gpus.on_pinned_gpu(release) == expected


def test_a_worker_loads_onto_its_gpu_and_is_counted_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is told the device that it sees; /metrics counts the worker by the number in nvidia-smi."""
    release = Release(Path("/nowhere/1"), "1", EngineSettings(device="cuda:3"), ())
    loaded: list[str] = []

    def load(release: Release, *_: object) -> Any:
        loaded.append(release.engine.device)
        return SimpleNamespace(warm_up=lambda _: None, memory=7, can_sleep=False)

    monkeypatch.setattr(loader, "load", load)
    monkeypatch.setattr(worker, "gc", SimpleNamespace(collect=lambda: None, freeze=lambda: None))
    one: Any = SlotWorker.__new__(SlotWorker)
    one.release, one.gpu = release, ALL[3]
    state = WorkerState.of_this_process(slot="blue", generation=1, version="1", device=one.gpu.label)
    one.state_file = SimpleNamespace(state=state)
    record = SimpleNamespace(ready=False)
    awake = SimpleNamespace(is_given=False)
    settings = SimpleNamespace(slot="blue")
    one.master = SimpleNamespace(settings=settings, import_seconds=0.0, record=record, sleep_order=awake)
    asyncio.run(one._prepare())
    assert loaded == ["cuda"]
    assert REGISTRY.get_sample_value("glm_workers", {"slot": "blue", "device": "cuda:3"}) == 1


@pytest.mark.parametrize(("live", "idle", "free"), [("blue", "green", "3.8 GiB"), ("green", "blue", "960.0 MiB")])
def test_preflight_looks_at_the_slot_that_will_hold_the_release(live: str, idle: str, free: str) -> None:
    """A candidate is loaded onto the GPUs of the idle slot, and has to fit on the fullest of them."""
    with host_with(4, "blue = [0, 1]\ngreen = [3]") as host:
        release = StoredRelease(Path("/nowhere/2"), Manifest(version="2", created_at="", files=()))
        context: Any = SimpleNamespace(
            host=host,
            slots=SimpleNamespace(live=live, idle=idle),
            releases=SimpleNamespace(get=lambda _: release),
            systemd=SimpleNamespace(memory_max=lambda _: None),
        )
        too_much = Copy(weights=5 << 30, process=0, workspace=0, kv_token=1, context=1)
        with (
            patch.object(need, "copy_of", lambda *_, **__: too_much),
            pytest.raises(NoRoom, match=f"{free} are available on the cuda"),
        ):
            memory.require(context, "2", "overlap")


def test_a_gpu_of_one_slot_alone_need_not_hold_two_copies() -> None:
    """Where the slots have GPUs of their own, the KV cache may take what would be left to the other one."""
    for devices, copies in (("", "auto"), ("blue = [0]\ngreen = [1]", 1), ("blue = [0, 1]\ngreen = [0]", "auto")):
        with host_with(2, devices) as host:
            assert loader._policy(host.policy, ALL[0]).copies == copies


def test_status_tells_the_gpu_of_each_worker() -> None:
    """In the order of the GPUs, in the document and as text; the text of a host without GPUs names none."""
    generation = Generation(generation=1, slot="blue", version="1", release="/x", master=1)
    for device in ("cuda:10", "cuda:2"):
        generation.workers.append(WorkerState.of_this_process(slot="blue", generation=1, version="1", device=device))
    devices = _devices(generation)
    first = {"device": "cuda:2", "pid": os.getpid(), "phase": "loading", "in_flight": 0}
    assert devices == [first, first | {"device": "cuda:10"}]
    assert report.workers({"workers": 2, "devices": devices}) == "2 workers on cuda:2, cuda:10"
    assert report.workers({"workers": 1, "devices": [first | {"device": "cpu"}]}) == "1 worker"
    shown: dict[str, Any] = dict.fromkeys(("version", "generation", "p95"), None) | dict.fromkeys(("gate", "state"), "")
    shown |= dict.fromkeys(("share", "mirror", "in_flight", "connections", "memory"), 0)
    slots = {"blue": shown | {"workers": 2, "devices": devices, "load": {}}}
    slots["green"] = shown | {"workers": 1, "devices": [first | {"device": "cpu"}], "load": {}}
    console = Console(file=io.StringIO(), width=report.WIDTH, record=True)
    console.print(_table({"live": "blue", "listen": None, "summary": None, "slots": slots, "devices": []}))
    lines = console.export_text().splitlines()
    assert [line for line in lines if " on cuda" in line] == ["blue has 2 workers on cuda:2, cuda:10"]
    assert _devices(None) == []


def test_the_unit_names_the_policy_of_its_host() -> None:
    """The service reads [devices] in the file that preflight reads, also in a user's installation."""
    with host_with(0) as host:
        unit = render(host, Addresses())[host.units / "glm@.service"]
        assert f"GLM_POLICY={host.policy}\n" in unit


def test_the_default_is_read_where_there_is_no_table(tmp_path: Path) -> None:
    """A policy without [devices] leaves all GPUs to both slots."""
    (tmp_path / "glm.toml").write_text("[memory]\nlimit = 1\n")
    assert Devices.read(tmp_path / "glm.toml") == Devices.read(tmp_path / "absent") == Devices()


@pytest.fixture
def generation(checkpoints: dict[str, Path], tmp_path: Path) -> Iterator[Callable[[], Generation]]:
    """The generation of blue under a real Gunicorn, on a host with four GPUs of which [devices] gives blue two."""
    release = tmp_path / "root/releases/1"
    release.mkdir(parents=True)
    (release / "release.json").write_text('{"version": "1"}')
    (release / "model").symlink_to(checkpoints["1.0.0"])
    (tmp_path / "root/blue").symlink_to("releases/1")
    (tmp_path / "glm.toml").write_text("[devices]\nblue = [3, 1]\ngreen = [0]\n")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LISTEN_", "NOTIFY_", "GLM_", "CUDA_", "PROMETHEUS_"))
    }
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    environment |= {"PYTHONPATH": f"{FAKE}", "FAKE_GPUS": "4", "GLM_ENGINE": "dummy", "GLM_SLOT": "blue"}
    environment |= {"GLM_BIND": f"127.0.0.1:{port}", "GLM_POLICY": str(tmp_path / "glm.toml")}
    environment |= {"GLM_ROOT": str(tmp_path / "root"), "GLM_RUNTIME": str(tmp_path / "run")}
    log = (tmp_path / "log").open("w")
    command = [sys.executable, "-m", "service"]
    with log, subprocess.Popen(command, cwd=CODE, env=environment, stdout=log, stderr=log) as server:
        try:

            def present() -> Generation:
                found = current(tmp_path / "run", "blue")
                assert found is not None, (tmp_path / "log").read_text()
                return found

            wait_for(lambda: server.poll() is not None or current(tmp_path / "run", "blue"), 60, "the master")
            yield present
        finally:
            server.terminate()


def test_gunicorn_gives_a_new_worker_the_gpu_of_the_dead_one(
    generation: Callable[[], Generation], tmp_path: Path
) -> None:
    """Each worker sees one GPU of the slot; after kill -9 the next one sees the same; HUP keeps a worker on each."""

    def ready() -> dict[str, int]:
        """The worker of each device, once all are ready."""
        found: list[WorkerState] = []

        def are_ready() -> bool:
            found[:] = generation().alive_workers
            return len(found) == 2 and all(one.phase == "ready" for one in found)

        wait_for(are_ready, 60, "the workers")
        return {one.device: one.pid for one in found}

    def visible(pid: int) -> str:
        """What the engine in this process found in CUDA_VISIBLE_DEVICES."""
        lines = (tmp_path / "log").read_text().splitlines()
        [found] = [line for line in lines if f"[{pid}] " in line and "CUDA_VISIBLE_DEVICES=" in line]
        return found.rpartition("=")[2]

    first = ready()
    assert {device: visible(pid) for device, pid in first.items()} == {
        "cuda:1": pynvml.uuid(1),
        "cuda:3": pynvml.uuid(3),
    }
    assert generation().workers_wanted == 2
    kill(first["cuda:3"])
    wait_for(
        lambda: first["cuda:3"] not in {one.pid for one in generation().alive_workers}, 60, "the end of the worker"
    )
    second = ready()
    assert second["cuda:1"] == first["cuda:1"]
    assert visible(second["cuda:3"]) == pynvml.uuid(3)
    os.kill(generation().master, signal.SIGHUP)
    wait_for(lambda: not set(second.values()) & {one.pid for one in generation().alive_workers}, 60, "the old workers")
    assert ready().keys() == second.keys()
