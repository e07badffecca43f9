"""The tiny checkpoint: the true layout, made in a moment, different with every seed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from service import tiny

FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny") / "deep" / "one"
    tiny.make(out, seed=1)
    return out


def test_it_has_the_files_of_a_real_checkpoint(made: Path) -> None:
    """Exactly the files that Hugging Face writes, all of them readable by the service's own user."""
    assert {file.name for file in made.iterdir()} == FILES
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in made.iterdir())
    config = json.loads((made / "config.json").read_text())
    assert config["architectures"] == ["Glm4vForConditionalGeneration"]
    assert config["dtype"] == "bfloat16"


def test_the_same_seed_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    """Two makes of one seed are equal to the byte, and another seed changes the weights alone."""
    tiny.make(tmp_path / "again", seed=1)
    tiny.make(tmp_path / "other", seed=2)
    for name in FILES:
        one = (made / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == one, name
        assert ((tmp_path / "other" / name).read_bytes() == one) == (name != "model.safetensors"), name


def test_the_command_makes_one_and_says_what(tmp_path: Path) -> None:
    """`python -m service.tiny OUT` makes a checkpoint of the size and type asked for."""
    command = [sys.executable, "-m", "service.tiny"]
    done = subprocess.run(
        [*command, str(tmp_path / "x"), "--size", "small", "--dtype", "float32"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "M parameters" in done.stdout
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert config["text_config"]["hidden_size"] == 256
    assert config["dtype"] == "float32"
    helped = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert "glmctl release add" in helped.stdout
