"""`glmctl deploy` without --strategy: what is chosen, why, and how the devices are shown."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.display import Display
from deploy.errors import Refused
from deploy.host import Host
from deploy.journal.record import Strategy
from deploy.releases.store import Releases
from deploy.reports import devices
from deploy.rollout import gpus, memory, need, preflight
from deploy.rollout.gpus import Gpu
from deploy.rollout.memory import NoRoom
from deploy.rollout.plan import Context, Plan
from deploy.rollout.strategy import Choice, choose
from deploy.systemd import programs
from deploy.systemd.units import TEMPLATES
from service.contract import device_memory, processes
from service.contract.generations import Generation
from service.contract.memory_policy import MemoryPolicy
from service.contract.slots import SLOTS
from service.contract.worker_state import WorkerState, WorkerStateFile
from tests.device_fixtures import GB, NINE_B, SHAPE
from tests.release_fixtures import make_checkpoint
from tests.rollout_fixtures import Moments, ScriptedContext, directories

ELSEWHERE = 1  # a process of another program


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedContext]:
    """A host on which this process serves 1.0.0 in blue; 1.1.0 is of the same architecture, and 2.0.0 of another."""
    (tmp_path / "host").mkdir()
    with directories(tmp_path / "host") as host:
        for version, layers in (("1.0.0", 40), ("1.1.0", 40), ("2.0.0", 41)):
            source = make_checkpoint(tmp_path / version)
            config = vars(SHAPE) | {"num_hidden_layers": layers, "dtype": "bfloat16"}
            (source / "config.json").write_text(json.dumps({"text_config": config}))
            Releases(host).add(source)
        _serve(host, "blue", "1.0.0")
        monkeypatch.setattr(need, "_stored", lambda _: NINE_B.weights)
        _host_memory(monkeypatch, 200 * GB)
        yield ScriptedContext.of(host, Moments())


def _serve(host: Host, slot: str, version: str, held: int = 0) -> None:
    pid, ticks = os.getpid(), processes.own_start_ticks()
    home = host.runtime / slot / "1"
    home.mkdir(parents=True, exist_ok=True)
    Generation(1, slot, version, "/", pid, ticks, ready=True).write(home)
    WorkerStateFile(home / f"{pid}.json", WorkerState(pid, version, "ready", slot, 1, ticks, memory=held)).publish()


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Puts a GPU of that size into the host, on which the live slot holds `held` bytes, by default a cache's share."""

    def put(total: float, *, held: int | None = None, told: bool = True) -> int:
        total = int(total)
        if held is None:
            tokens = device_memory.cache_tokens(NINE_B, device_memory.Device("cuda", total, total), MemoryPolicy())
            held = NINE_B.with_cache(tokens)
        used = {os.getpid(): held, ELSEWHERE: 5} if told else {ELSEWHERE: 5}
        monkeypatch.setattr(gpus, "find", lambda: [Gpu(0, "GPU-0", total, total - held, used)])
        return held

    return put


def _host_memory(monkeypatch: pytest.MonkeyPatch, available: float) -> None:
    found = SimpleNamespace(total=256 * GB, available=int(available))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: found)


@pytest.mark.parametrize(
    ("size", "held", "version", "strategy"),
    [
        (24, None, "1.1.0", "weights"),
        (24, None, "2.0.0", "swap"),
        (48, None, "1.1.0", "overlap"),
        (48, 32 * GB, "1.1.0", "weights"),  # a release that names a large cache
        (80, None, "1.1.0", "overlap"),
        (80, 70 * GB, "2.0.0", "swap"),
        (141, None, "2.0.0", "overlap"),
    ],
)
def test_the_first_strategy_that_is_possible(
    context: ScriptedContext, card: Callable[..., int], size: int, held: int | None, version: str, strategy: Strategy
) -> None:
    """Overlap where two copies fit, else weights where the architecture is the same, else swap; with the reason."""
    card(size * GB, held=held)
    choice = choose(context, version)
    assert choice.strategy == strategy
    assert choice.reason
    assert "\n" not in choice.reason
    memory.require(context, version, choice.strategy)  # preflight agrees
    if strategy == "overlap":
        assert f"{version} fits beside blue" in choice.reason
        return
    assert f"{version} needs" in choice.reason
    assert "beside blue, which holds" in choice.reason
    assert ("its architecture is that of 1.0.0" if strategy == "weights" else "config.json differ") in choice.reason
    with pytest.raises(NoRoom):
        memory.require(context, version, "overlap")


def test_overlap_where_nothing_else_can_be_chosen(
    context: ScriptedContext, card: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a canary, without a slot that serves, with a warm version; and where preflight refuses anyway."""
    card(24 * GB)
    assert choose(context, "1.1.0", needs_two=True).strategy == "overlap"
    assert choose(context, "9.9.9") == Choice("overlap", None)
    _serve(context.host, "green", "1.1.0")
    assert choose(context, "1.1.0").reason == "1.1.0 is still loaded in green"
    monkeypatch.setattr(gpus, "find", lambda: (_ for _ in ()).throw(Refused("the GPUs cannot be examined")))
    assert choose(context, "2.0.0") == Choice("overlap", None)
    card(24 * GB)
    assert choose(context, "2.0.0").strategy == "swap"
    (context.host.runtime / "blue/1/generation.json").unlink()
    assert choose(context, "2.0.0") == Choice("overlap", None)


def test_weights_need_the_memory_of_the_host_alone(
    context: ScriptedContext, card: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU new weights are read beside the old ones, and swap is chosen without room; for a GPU they may wait."""
    _host_memory(monkeypatch, 10 * GB)
    card(24 * GB)
    assert choose(context, "1.1.0").strategy == "weights"
    monkeypatch.setattr(gpus, "find", list)
    choice = choose(context, "1.1.0")
    assert choice.strategy == "swap"
    assert "the weights of 1.1.0 need 19.2 GiB of the host's memory" in str(choice.reason)


def test_what_nvml_does_not_tell_is_in_the_state_files(context: ScriptedContext, card: Callable[..., int]) -> None:
    """In a container NVML has other pids: what the live slot frees by a swap is then what its workers computed."""
    held = card(24 * GB, told=False)
    with pytest.raises(NoRoom):
        memory.require(context, "1.1.0", "swap")
    _serve(context.host, "blue", "1.0.0", held)
    memory.require(context, "1.1.0", "swap")


def test_what_the_idle_slot_holds_is_free(context: ScriptedContext, card: Callable[..., int]) -> None:
    """Its unit is stopped before the candidate starts, so a version that was kept warm takes no room from the next."""
    held = card(48 * GB)
    card(48 * GB, held=2 * held, told=False)
    _serve(context.host, "blue", "1.0.0", held)
    _serve(context.host, "green", "2.0.0", held)
    assert choose(context, "1.1.0").strategy == "overlap"


def test_slots_with_gpus_of_their_own_always_overlap(
    context: ScriptedContext, card: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The candidate's card is looked at, and not the one that the live slot fills."""
    held = card(24 * GB)
    cards = [Gpu(0, "GPU-0", 24 * GB, 24 * GB - held, {os.getpid(): held}), Gpu(1, "GPU-1", 24 * GB, 24 * GB, {})]
    monkeypatch.setattr(gpus, "find", lambda: cards)
    context.host.policy.write_text("[devices]\nblue = [0]\ngreen = [1]\n")
    assert choose(context, "2.0.0").strategy == "overlap"
    assert [view["fits"] for view in devices.views(context, {})] == [None, True]


@pytest.mark.parametrize("copies", [1, 2])
def test_the_policy_decides_how_many_copies_a_card_holds(
    context: ScriptedContext, card: Callable[..., int], copies: int
) -> None:
    """Copies = 2 refuses a release of more than half of the card, which would keep the next one out; 1 accepts it."""
    context.host.policy.write_text(f"[memory]\ncopies = {copies}\n")
    card(24 * GB)
    if copies == 1:
        memory.require(context, "1.1.0", "swap")
    else:
        with pytest.raises(NoRoom):
            memory.require(context, "1.1.0", "swap")


# the devices in status and doctor


def test_a_device_shows_what_slots_hold_and_what_fits(context: ScriptedContext, card: Callable[..., int]) -> None:
    """What the live slot holds, what is free, and whether an equal version would fit beside it."""
    for size, has_room in ((24, False), (80, True)):
        held = card(size * GB)
        [document] = devices.views(context, {})
        assert document == {
            "name": "cuda:0", "total": size * GB, "free": size * GB - held, "slots": {"blue": held, "green": 0},
            "version": "1.0.0", "fits": has_room,
        }  # fmt: skip
    held = card(48 * GB)
    card(48 * GB, held=2 * held, told=False)
    for slot, version in (("blue", "1.0.0"), ("green", "2.0.0")):
        _serve(context.host, slot, version, held)
    assert devices.views(context, {})[0]["fits"]  # what the idle slot holds, a deploy frees
    assert devices.text(document) == "cuda:0: 39.6 of 74.5 GiB free, blue 34.9; another copy fits"


def test_without_a_gpu_it_is_the_memory_of_the_host(context: ScriptedContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slots hold there what is resident; without a live version nothing is said of another copy."""
    monkeypatch.setattr(gpus, "find", list)
    _host_memory(monkeypatch, 100 * GB)
    [document] = devices.views(context, {"blue": 7, "green": 0})
    assert (document["name"], document["total"], document["free"]) == ("host", 256 * GB, 100 * GB)
    assert (document["slots"], document["fits"]) == ({"blue": 7, "green": 0}, True)
    context.slots.go_live(None)
    [document] = devices.views(context, {"blue": 0, "green": 0})
    assert (document["version"], document["fits"]) == (None, None)
    assert "another copy" not in devices.text(document)


@pytest.mark.parametrize("fault", ["driver", "policy", "release"])
def test_status_survives_what_cannot_be_examined(
    context: ScriptedContext, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """A driver that fails, an invalid glm.toml or a damaged release leave the devices out."""
    monkeypatch.setattr(gpus, "find", list)
    assert devices.views(context, dict.fromkeys(SLOTS, 0))
    if fault == "driver":
        monkeypatch.setattr(gpus, "find", lambda: (_ for _ in ()).throw(Refused("the GPUs cannot be examined")))
    elif fault == "policy":
        context.host.policy.write_text("[memory]\ncopies = 3\n")
    else:
        path = context.host.releases / "1.0.0"
        path.chmod(0o755)
        (path / "release.json").unlink()
    assert devices.views(context, dict.fromkeys(SLOTS, 0)) == []
    with pytest.raises(Refused):
        devices.examine(context, dict.fromkeys(SLOTS, 0))


sizes = st.integers(0, 1 << 40)


@given(held=st.tuples(sizes, sizes), free=sizes, total=sizes, fits=st.sampled_from([True, False, None]))
def test_a_device_is_one_line(held: tuple[int, int], free: int, total: int, fits: bool | None) -> None:
    """Up to 1 TiB it has at most 80 columns, also after the first word of a line of doctor."""
    document = {"name": "cuda:15", "slots": dict(zip(SLOTS, held, strict=True)), "free": free, "total": total}
    assert len(devices.text(document | {"fits": fits})) <= 76


def test_gpus_as_nvml_tells_them() -> None:
    """Total, free, and what each process holds; unknown is 0."""

    class Nvml:
        def nvmlDeviceGetCount(self) -> int:  # noqa: N802
            return 2

        def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
            return index

        def nvmlDeviceGetMemoryInfo(self, index: int) -> Any:  # noqa: N802
            return SimpleNamespace(total=80 + index, free=50)

        def nvmlDeviceGetComputeRunningProcesses(self, index: int) -> list[Any]:  # noqa: N802
            return [SimpleNamespace(pid=7, usedGpuMemory=20), SimpleNamespace(pid=8, usedGpuMemory=None)]

        def nvmlDeviceGetUUID(self, index: int) -> str:  # noqa: N802
            return f"GPU-{index}"

    assert list(gpus._read(Nvml())) == [Gpu(index, f"GPU-{index}", 80 + index, 50, {7: 20, 8: 0}) for index in (0, 1)]


# programs that are needed later


@pytest.mark.parametrize("strategy", ["overlap", "swap", "weights"])
@pytest.mark.parametrize(("kind", "missing"), [("UNITS", "no-such-tail"), ("SCRIPTS", "no-such-gunicorn")])
def test_what_units_run_later_is_looked_for_first(
    context: Context, monkeypatch: pytest.MonkeyPatch, strategy: Strategy, kind: str, missing: str
) -> None:
    """Preflight of every strategy refuses a host that lacks a program of the units, or a script of the timers."""
    monkeypatch.setattr(programs, kind, (*getattr(programs, kind), missing))
    with pytest.raises(Refused, match=missing) as refused:
        preflight.rehearse(Context(context.host, Display(quiet=True)), Plan("1.1.0", strategy=strategy))
    assert refused.value.exit_code == 3
    assert refused.value.hint


def test_programs_of_the_units(tmp_path: Path) -> None:
    """All that unit files run without ignoring its failure are looked for, where the service manager looks."""
    lines = [line for path in TEMPLATES.glob("*.service") for line in path.read_text().splitlines()]
    commands = [line.partition("=")[2] for line in lines if line.startswith("Exec")]
    first = {Path(command.split()[0]).name for command in commands if not command.startswith("-")}
    assert first - {"@PYTHON@", "@GLMCTL@"} <= set(programs.UNITS)
    assert all(any(program in command for command in commands) for program in programs.UNITS)
    programs.require_of_units()
    for name in programs.SCRIPTS:
        (tmp_path / name).touch(0o755)
    programs.require_of_units(tmp_path / "python")
    (tmp_path / "glmctl").chmod(0o644)
    with pytest.raises(Refused, match="glmctl"):
        programs.require_of_units(tmp_path / "python")
    with pytest.raises(Refused, match="sh"):
        programs.require_of_units(path=str(tmp_path))
