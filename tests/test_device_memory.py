"""How the memory of a device is divided: two copies fit by default wherever it can hold two."""

from __future__ import annotations

import asyncio
import gc
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from deploy.errors import Refused
from deploy.policy import Policy
from deploy.releases.store import Releases
from deploy.rollout import need
from deploy.rollout.memory import Memory
from service import metrics
from service.contract import device_memory, memory_policy, processes
from service.contract.device_memory import Copy, Device
from service.contract.engine_settings import EngineSettings
from service.contract.generations import Generation
from service.contract.memory_policy import MemoryPolicy
from service.contract.worker_state import WorkerState, WorkerStateFile
from service.engine import Limits, loader, memory, model_engine
from service.engine.memory import MemoryShare
from service.engine.model_engine import ModelEngine
from service.model import checkpoint
from service.model.release import Release
from service.process import worker
from service.settings import Settings
from tests.device_fixtures import GB, NINE_B, SHAPE
from tests.release_fixtures import host_in

AUTO, ONE, TWO = MemoryPolicy(), MemoryPolicy(copies=1), MemoryPolicy(copies=2)

sizes = st.integers(0, 200 * GB)
copies = st.builds(
    Copy,
    weights=st.integers(1, 30 * GB),
    process=st.integers(0, GB),
    workspace=st.integers(0, GB),
    kv_token=st.integers(1, 200_000),
    context=st.integers(256, 200_000),
    rows=st.integers(1, 1024),
    kv_tokens=st.just(0) | st.integers(1, 100_000),
)
policies = st.builds(MemoryPolicy, copies=st.sampled_from(["auto", 1, 2]), limit=st.none() | sizes)


def gpu(total: float, free: float | None = None, slots: float = 0) -> Device:
    return Device("cuda", int(total), int(total if free is None else free), int(slots))


def test_a_token_of_the_9b_shape() -> None:
    """40 layers of two heads of 128 keys and values, in two bytes each."""
    assert NINE_B.kv_token == 2 * 40 * 2 * 128 * 2
    assert replace(SHAPE, num_key_value_heads=8).kv_bytes(2) == 4 * NINE_B.kv_token
    assert replace(SHAPE, num_key_value_heads=None).kv_bytes(2) == 16 * NINE_B.kv_token


@pytest.mark.parametrize(
    ("card", "beside", "tokens"),
    [(24, False, 17_000), (48, True, 17_000), (80, True, 380_000), (141, True, 1_080_000)],
)
def test_the_9b_shape_on_cards(card: int, beside: bool, tokens: int) -> None:
    """The first copy leaves room for the second, which gets as much; 24 GB hold one, which then takes all of it."""
    device = gpu(card * GB)
    first = device_memory.cache_tokens(NINE_B, device, AUTO)
    assert first >= tokens
    held = NINE_B.with_cache(first)
    second = gpu(card * GB, card * GB - held, held)
    assert device_memory.fits(NINE_B, second, AUTO) is beside
    if beside:
        assert device_memory.cache_tokens(NINE_B, second, AUTO) == first
        assert held <= card * GB / 2
    else:
        assert first == device_memory.cache_tokens(NINE_B, device, ONE)
        assert not device_memory.fits(NINE_B, device, TWO)


def test_one_copy_by_the_policy_takes_the_whole_card() -> None:
    """With copies = 1 a card that would hold two gets one large cache, and a sixteenth stays free."""
    first = device_memory.cache_tokens(NINE_B, gpu(141 * GB), ONE)
    assert first > 2 * device_memory.cache_tokens(NINE_B, gpu(141 * GB), AUTO)
    held = NINE_B.with_cache(first)
    assert 0 <= 141 * GB * 15 / 16 - held < 2 * NINE_B.kv_token
    assert not device_memory.fits(NINE_B, gpu(141 * GB, 141 * GB - held, held), ONE)


@given(copy=copies, more=sizes, others=sizes, limit=st.none() | sizes)
def test_two_equal_copies_fit_wherever_the_device_can_hold_two(
    copy: Copy, more: int, others: int, limit: int | None
) -> None:
    """Whatever other programs hold, the second copy fits beside the first if half of the rest is enough for one."""
    copy = replace(copy, kv_tokens=0)
    needed = 2 * (copy.least * 16 // 15 + 2)  # a sixteenth is left to what cannot be computed
    free, policy = needed + more, MemoryPolicy(limit=None if limit is None else needed + limit)
    total, both = free + others, free if policy.limit is None else min(free, policy.limit)
    first = device_memory.cache_tokens(copy, gpu(total, free), policy)
    held = copy.with_cache(first)
    second = gpu(total, free - held, held)
    assert device_memory.fits(copy, second, policy)
    assert device_memory.cache_tokens(copy, second, policy) == first
    assert 2 * held <= both


@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(copy=copies, more=sizes, slots=sizes, others=sizes, policy=policies)
def test_no_copy_takes_more_than_there_is(copy: Copy, more: int, slots: int, others: int, policy: MemoryPolicy) -> None:
    """A copy that fits stays, with its cache, within what is free and within the operator's limit."""
    free = copy.least + more
    total = free + slots + others
    device = gpu(total, free, slots)
    assume(device_memory.fits(copy, device, policy))
    taken = copy.with_cache(device_memory.cache_tokens(copy, device, policy))
    assert copy.least <= taken <= free
    assert policy.limit is None or taken + slots <= policy.limit
    assert policy.copies != 2 or copy.kv_tokens or 2 * taken <= total


@given(
    copy=copies,
    others=sizes,
    free=sizes,
    held=st.tuples(sizes, sizes),
    strategy=st.sampled_from(["overlap", "swap"]),
    policy=policies,
    kind=st.sampled_from(["cuda", "cpu"]),
)
@example(copy=NINE_B, others=0, free=80 * GB, held=(61 * GB, 0), strategy="overlap", policy=AUTO, kind="cuda")
def test_the_engine_and_preflight_compute_the_same(
    copy: Copy, others: int, free: int, held: tuple[int, int], strategy: Any, policy: MemoryPolicy, kind: Any
) -> None:
    """What preflight finds before the candidate is there, the engine finds once the weights are on the device."""
    total = free + sum(held) + others
    seen = Memory(Device(kind, total, free), policy, {"blue": held[0], "green": held[1]})
    found = seen.found_by(strategy, "blue", "green")
    loaded = found.free - copy.weights - copy.process  # the idle slot has been stopped, by a swap the live one too
    share = MemoryShare(policy, 0 if strategy == "swap" else held[0])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(memory, "memory_of", lambda _: (total, loaded))
        tokens = memory.cache_tokens(copy, torch.device(kind), share)
    assert tokens == device_memory.cache_tokens(copy, found, policy)
    if kind == "cuda":
        assert (tokens >= copy.least_tokens) is device_memory.fits(copy, found, policy) or copy.kv_tokens


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]) -> tuple[Releases, Release, Any]:
    """A release, as both programs read it, and its model."""
    releases = Releases(host_in(tmp_path_factory.mktemp("host")))
    added = releases.add(checkpoints["1.0.0"], version="1.0.0")
    release = Release.read(added.path)
    return releases, release, checkpoint.load(release.model, release.engine, lambda *_: None)


def test_both_read_the_same_sizes(loaded: tuple[Releases, Release, Any]) -> None:
    """From the files and from the model that was built of them: equal, but for the headers of the files."""
    releases, release, found = loaded
    by_files = need.copy_of(releases.get("1.0.0"), workers=1, kind="cpu")
    by_model = memory.copy_of(found.model, release.engine)
    assert replace(by_files, weights=by_model.weights) == by_model
    assert 0 <= by_files.weights - by_model.weights < 100_000


def test_a_converted_release_is_computed_from_its_tensors(loaded: tuple[Releases, Release, Any]) -> None:
    """With another dtype in the engine settings, weights and cache have the bytes of that dtype."""
    stored = loaded[0].get("1.0.0")
    plain = need.copy_of(stored, workers=1, kind="cpu")
    half = replace(stored, manifest=stored.manifest.model_copy(update={"engine": {"dtype": "bfloat16"}}))
    converted = need.copy_of(half, workers=1, kind="cpu")
    assert 0 <= plain.weights - 2 * converted.weights < 100_000
    assert plain.kv_token == 2 * converted.kv_token


def test_the_engine_takes_the_share(loaded: tuple[Releases, Release, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the shared function returns is the size of the cache, at most, of an engine whose release names none."""
    _, release, found = loaded
    asked: list[Any] = []

    def tokens(*arguments: Any) -> int:
        asked.append(arguments)
        return 5000

    monkeypatch.setattr(memory, "cache_tokens", tokens)
    share = MemoryShare(TWO, 7)
    engine = ModelEngine(found, release.engine, Limits(), share)
    try:
        budget = engine._core._runner.cache.budget
        assert 5000 - budget.rows < budget.rows * budget.columns <= 5000
        assert asked == [(memory.copy_of(found.model, release.engine), found.model.device, share)]
        assert engine.memory == 0  # on the CPU
    finally:
        engine.close()


def _worker(directory: Path, slot: str, generation: int, pid: int, held: int) -> None:
    home = directory / slot / str(generation)
    home.mkdir(parents=True)
    Generation(generation, slot, "1.0.0", "/", pid, processes.start_ticks(pid), ready=True).write(home)
    state = WorkerState(pid, "1.0.0", "ready", slot, generation, processes.start_ticks(pid), memory=held)
    WorkerStateFile(home / f"{pid}.json", state).publish()


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ('[memory]\nlimit = "40GiB"\ncopies = 1\n', MemoryPolicy(1, 40 << 30)),
        (None, AUTO),
        ("[memory", AUTO),
        ("[memory]\ncopies = 3\n", AUTO),
    ],
    ids=["a policy", "no file", "no TOML", "an unknown value"],
)
def test_the_policy_and_the_other_slot_reach_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, policy: MemoryPolicy
) -> None:
    """The loader reads glm.toml and the state files of other generations; an invalid file keeps no slot down."""
    host = Settings(slot="green", root=tmp_path, runtime=tmp_path, policy=tmp_path / "glm.toml")
    if text is not None:
        host.policy.write_text(text)
    _worker(tmp_path, "blue", 1, os.getppid(), 30 * GB)
    _worker(tmp_path, "green", 1, os.getpid(), 5 * GB)  # this one
    given: dict[str, Any] = {}
    monkeypatch.setattr(model_engine.ModelEngine, "load", lambda _release, **more: given.update(more))
    loader.load(Release(tmp_path, "1", EngineSettings(), ()), host, lambda *_: None)
    assert given["share"] == MemoryShare(policy, 30 * GB)


def test_a_worker_publishes_what_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine holds of its GPU is in the worker's state as soon as the model is loaded."""
    state, seen = WorkerState(1, "1.0.0", "loading"), list[int]()

    async def checks(*_: Any) -> None:
        pass

    engine = SimpleNamespace(memory=5 * GB, warm_up=lambda _: seen.append(state.memory), can_sleep=False)
    monkeypatch.setattr(loader, "load", lambda *_: engine)
    monkeypatch.setattr(worker, "run_checks", checks)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    monkeypatch.setattr(metrics, "set_load_seconds", lambda *_: None)
    master = SimpleNamespace(
        settings=Settings(slot="blue", runtime=tmp_path),
        import_seconds=0.0,
        record=SimpleNamespace(ready=False),
        sleep_order=SimpleNamespace(is_given=False),
    )
    release = Release(tmp_path, "1.0.0", EngineSettings(), ())
    this: Any = SimpleNamespace(master=master, state_file=SimpleNamespace(state=state), release=release, gpu=None)
    asyncio.run(worker.SlotWorker._prepare(this))
    assert seen == [5 * GB]


units = st.sampled_from(["", "B", "kB", "KiB", "MB", "mib", "G", "GB", "GiB", "TB", "TiB", "PB", "x", "-"])
limits = st.one_of(
    st.integers(-5, 1 << 40),
    st.booleans(),
    st.builds(lambda number, gap, unit: f"{number}{gap}{unit}", st.integers(0, 999), st.sampled_from(["", " "]), units),
    st.sampled_from(["1.5 GiB", "nan", "", "GiB", "inf", []]),
)
tables = st.fixed_dictionaries(
    {}, optional={"copies": st.sampled_from(["auto", 1, 2, 0, 3, "2", True, 1.5]), "limit": limits, "more": st.just(1)}
)


@given(table=tables)
def test_both_programs_agree_on_the_policy(tmp_path_factory: pytest.TempPathFactory, table: dict[str, Any]) -> None:
    """The service reads from glm.toml what the controller accepts; both refuse the rest, and name the key."""
    host = host_in(tmp_path_factory.getbasetemp())
    lines = [f"{name} = {json.dumps(value)}" for name, value in table.items()]
    host.policy.write_text("\n".join(["[memory]", *lines]))
    try:
        accepted = Policy.of(host).memory
    except Refused as refused:
        message = str(refused)
    else:
        assert memory_policy.read(host.policy) == accepted
        return
    with pytest.raises(ValueError, match=" is ") as invalid:
        memory_policy.read(host.policy)
    assert str(invalid.value) in message
    assert any(name in message.partition("memory: ")[2] for name in table)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("40GiB", 40 << 30),
        ("40 GB", 40 * GB),
        ("1.5g", 3 * GB // 2),
        ("700MiB", 700 << 20),
        ("2TiB", 2 << 40),
        ("9", 9),
    ],
)
def test_sizes(text: str, size: int) -> None:
    """KiB to TiB are powers of 1024, kB to TB of 1000, without a unit bytes."""
    assert memory_policy.parse({"limit": text}).limit == size
