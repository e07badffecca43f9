"""The checkpoints with random weights, and their chat template."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.demo_models import tiny

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
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny") / "deep" / "one"
    tiny.make(out, seed=1)
    return out


def test_files(checkpoint: Path) -> None:
    """The files are those that Hugging Face writes, and the service's user can read them."""
    assert {file.name for file in checkpoint.iterdir()} == FILES
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in checkpoint.iterdir())
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["architectures"] == ["Glm4vForConditionalGeneration"]
    assert config["dtype"] == "bfloat16"


def test_reproducibility(checkpoint: Path, tmp_path: Path) -> None:
    """The same seed gives the same bytes; another seed changes the weights only."""
    tiny.make(tmp_path / "again", seed=1)
    tiny.make(tmp_path / "other", seed=2)
    for name in FILES:
        content = (checkpoint / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == content, name
        assert ((tmp_path / "other" / name).read_bytes() == content) == (name != "model.safetensors"), name


@pytest.mark.long
def test_command(tmp_path: Path) -> None:
    """`python -m service.demo_models.tiny OUT` makes a checkpoint of the given size and type."""
    command = [sys.executable, "-m", "service.demo_models.tiny"]
    done = subprocess.run(
        [*command, str(tmp_path / "x"), "--size", "small", "--dtype", "float32"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "M parameters" in done.stdout
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert config["text_config"]["hidden_size"] == 256
    assert config["dtype"] == "float32"
    help_text = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert "glmctl release add" in help_text.stdout


def render(checkpoint: Path, messages: list[dict[str, Any]], **variables: Any) -> str:
    from service.model.processor import Processor

    return str(Processor.read(checkpoint).apply_chat_template(messages, tokenize=False, **variables))


WEATHER = {"type": "function", "function": {"name": "weather", "description": "Das Wetter für <Ort>", "parameters": {}}}


def test_template_renders_tools(checkpoint: Path) -> None:
    """Tool definitions come first, as unescaped JSON lines, followed by the format of a call."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    text = render(checkpoint, messages, tools=[WEATHER, WEATHER], add_generation_prompt=True)
    line = json.dumps(WEATHER, ensure_ascii=False) + "\n"
    assert text.startswith("[gMASK]<sop><|system|>\n# Tools\n")
    assert f"<tools>\n{line}{line}</tools>" in text
    assert "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n<arg_value>" in text
    assert text.endswith("</tool_call><|system|>\nBe kind.<|user|>\nHi<|assistant|>")
    assert render(checkpoint, messages) == "[gMASK]<sop><|system|>\nBe kind.<|user|>\nHi"


def test_template_renders_calls_and_results(checkpoint: Path) -> None:
    """Arguments are strings or JSON in tags, results share one observation, control tags are single tokens."""
    calls = [
        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "days": [1, 2]}}},
        {"id": "2", "type": "function", "function": {"name": "clock", "arguments": {}}},
    ]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Will it rain?"},
        {"role": "assistant", "content": None, "reasoning_content": "Look it up.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "Rain"},
        {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "Noon"}]},
    ]
    text = render(checkpoint, messages, add_generation_prompt=True)
    assert text == (
        "[gMASK]<sop><|user|>\nWill it rain?<|assistant|>\n<think>Look it up.</think>"
        "\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Köln</arg_value>"
        "\n<arg_key>days</arg_key>\n<arg_value>[1, 2]</arg_value>\n</tool_call>\n<tool_call>clock\n</tool_call>"
        "<|observation|>\n<tool_response>\nRain\n</tool_response>\n<tool_response>\nNoon\n</tool_response><|assistant|>"
    )
    vocabulary = json.loads((checkpoint / "tokenizer.json").read_text())["added_tokens"]
    kinds = {token["content"]: token["special"] for token in vocabulary}
    for tag in ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<tool_call>", "</tool_call>"):
        assert kinds[tag] is False, tag
    assert kinds["<|observation|>"] is True


def test_template_drops_earlier_reasoning(checkpoint: Path) -> None:
    """Reasoning is kept only after the last user message, whether from the field or from tags in the text."""
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two", "reasoning_content": "old"},
        {"role": "user", "content": "Three"},
        {"role": "assistant", "content": "<think>new</think>\nFour"},
    ]
    assert render(checkpoint, messages, enable_thinking=False) == (
        "[gMASK]<sop><|user|>\nOne/nothink<|assistant|>\n<think></think>\nTwo"
        "<|user|>\nThree/nothink<|assistant|>\n<think>new</think>\nFour"
    )
