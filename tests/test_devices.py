"""The engine settings of a release, above all its device: what cannot be used is refused with a plain message."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.errors import Refused
from deploy.releases.store import Manifest
from deploy.releases.store import Release as StoredRelease
from deploy.rollout import gpus, need
from deploy.rollout.gpus import Gpu
from service.contract import engine_settings
from service.contract.engine_settings import EngineSettings
from service.demo_models import tiny
from service.engine import Limits
from service.engine.model_engine import ModelEngine
from service.model.checkpoint import _device
from service.model.release import Release, ReleaseError
from tests.box import Box
from tests.release_fixtures import host_in

USABLE = ["auto", "cpu", "cuda", "cuda:0", "cuda:1"]
KINDS = ["auto", "cpu", "cuda", "meta", "mps", "hpu", "mkldnn", "quantum"]
ENDS = ["", ":0", ":1", ":99", ":-1", ":"]
names = st.one_of(st.builds(str.__add__, st.sampled_from(KINDS), st.sampled_from(ENDS)), st.text())
numbers = st.one_of(st.integers(-2, 2000), st.integers(), st.floats(), st.booleans(), st.none(), st.text())
documents = st.fixed_dictionaries(
    {},
    optional={
        "device": st.one_of(names, numbers),
        "dtype": st.sampled_from(["auto", "bfloat16", "float64", None, []]),
        **dict.fromkeys(["rows", "kv_tokens", "prefill_chunk", "image_cache_mib", "max_new_tokens"], numbers),
        "unknown": numbers,
    },
)


@given(names)
def test_a_device_is_usable_or_refused(name: str) -> None:
    """A name leads to a device that the engine runs on, or to a ReleaseError of one line that contains it."""
    try:
        device = _device(name)
    except ReleaseError as error:
        message = str(error)
    else:
        assert device.type in {"cpu", "cuda"}
        assert torch.ones(2, device=device).sum() == 2
        return
    assert repr(name) in message
    assert "\n" not in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="the host has a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:1", "meta", "quantum"])
def test_a_release_for_a_missing_device_cannot_be_loaded(tmp_path: Path, name: str) -> None:
    """The engine raises ReleaseError, for which the worker reports that it is not ready."""
    tiny.make(tmp_path / "model", seed=1)
    release = Release(tmp_path, "1.0.0", EngineSettings(device=name), ())
    with pytest.raises(ReleaseError, match=f"the device '{name}' of release.json"):
        ModelEngine.load(release, threads=1, limits=Limits(), progress=lambda *_: None)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(document=documents)
def test_both_programs_agree_on_engine_settings(document: dict[str, Any]) -> None:
    """The service reads what the controller accepts; both refuse the rest, and name the setting."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        (path / "release.json").write_text(json.dumps({"version": "1", "engine": document, "checks": []}))
        stored = StoredRelease(path, Manifest(version="1", created_at="", files=(), engine=document))
        try:
            expected = engine_settings.parse(document)
        except ValueError as error:
            at_fault = re.escape(str(error))
            with pytest.raises(ReleaseError, match=f"invalid: {at_fault}$"):
                Release.read(path)
            with pytest.raises(Refused, match=f"cannot be served: {at_fault}$"):
                need.copy_of(stored, workers=1, kind="cpu")
        else:
            assert Release.read(path).engine == expected
            assert need.copy_of(stored, workers=1, kind="cpu").least > 0


@given(name=st.one_of(st.sampled_from(USABLE), names), count=st.integers(0, 3))
def test_preflight_finds_the_gpus_of_a_release_or_refuses_it(name: str, count: int) -> None:
    """It returns the GPUs that the workers will use, none for the CPU, and refuses a device that the host lacks."""
    found = [Gpu(number, f"GPU-{number}", total=number, free=number, used_by={}) for number in range(count)]
    host = host_in(Path("/nowhere"))
    release = StoredRelease(Path("/nowhere/1"), Manifest(version="1", created_at="", files=(), engine={"device": name}))
    expected = {
        "auto": found,
        "cuda": found or None,
        "cuda:0": found[:1] or None,
        "cuda:1": found[1:2] or None,
        **{cpu: [] for cpu in ("cpu", "cpu:0", "cpu:1", "cpu:99")},
    }.get(name)
    with patch.object(gpus, "find", lambda: found):
        if expected is not None:
            assert gpus.of_release(release, host, "green") == expected
            return
        with pytest.raises(Refused, match="device") as refused:
            gpus.of_release(release, host, "green")
    assert refused.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="the host has a GPU")
def test_a_release_for_a_gpu_is_refused_on_a_host_without(box: Box, add_release: Callable[..., None]) -> None:
    """The deploy is refused by preflight with one plain line, and recorded as such."""

    def need_gpu(path: Path) -> None:
        (path / "engine.json").write_text('{"device": "cuda"}')

    add_release(box, "2.0.0", change=need_gpu)
    error = box.glmctl("deploy", "2.0.0", expect=3).stderr
    assert "2.0.0 cannot be served: the release needs the device cuda, and green has 0 visible GPUs" in error
    assert "Traceback" not in error
    record = box.json("history")["rollouts"][-1]
    assert (record["version"], record["outcome"]) == ("2.0.0", "refused")
    assert record["receipt"] is None or record["receipt"]["lost"] == 0
    assert box.json("status")["slots"]["blue"]["version"] == "1.0.0"
