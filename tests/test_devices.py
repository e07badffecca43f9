"""The device of a release: one that the host lacks is refused with a plain message."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.demo_models import tiny
from service.engine import Limits
from service.engine.model_engine import ModelEngine
from service.model.checkpoint import _device
from service.model.release import EngineSettings, Release, ReleaseError

KINDS = ["auto", "cpu", "cuda", "meta", "mps", "hpu", "mkldnn", "quantum"]
ENDS = ["", ":0", ":99", ":-1", ":"]


@given(st.one_of(st.builds(str.__add__, st.sampled_from(KINDS), st.sampled_from(ENDS)), st.text()))
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
