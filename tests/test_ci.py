"""The examples for CI: valid, and their scripts do what their README says."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

CODE = Path(__file__).resolve().parent.parent
CI = CODE / "deploy/ci"
STAGES = ("package", "check", "staging", "canary", "fleet", "undo")


def package(checkpoint: Path, version: str, mirror: Path) -> subprocess.CompletedProcess[str]:
    command = [str(CI / "package"), str(checkpoint), version, str(mirror)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "checkpoint"
    (directory / "sub").mkdir(parents=True)
    for name in ("config.json", "model-00001-of-00002.safetensors", "sub/a b.txt", ".hidden"):
        (directory / name).write_text(name)
    return directory


def test_package_publishes_files_with_their_digests(checkpoint: Path, tmp_path: Path) -> None:
    """The mirror has every file but hidden ones, and a list that sha256sum accepts, whose digest is printed."""
    done = package(checkpoint, "1.2.0-20250405", tmp_path / "mirror")
    assert done.returncode == 0, done.stderr
    published = tmp_path / "mirror/1.2.0-20250405"
    files = {str(path.relative_to(published)) for path in published.rglob("*") if path.is_file()}
    assert files == {"SHA256SUMS", "config.json", "model-00001-of-00002.safetensors", "sub/a b.txt"}
    assert done.stdout.strip() == hashlib.sha256((published / "SHA256SUMS").read_bytes()).hexdigest()
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=published, check=True)
    again = package(checkpoint, "1.2.0-20250405", tmp_path / "mirror")
    assert (again.returncode, again.stdout) == (0, done.stdout)


def change(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("another")


def pickle(checkpoint: Path) -> None:
    (checkpoint / "pytorch_model.bin").touch()


def incomplete(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "reason"), [(change, "other files"), (pickle, "pickle"), (incomplete, "no config.json")]
)
def test_package_refuses(damage: Callable[[Path], None], reason: str, checkpoint: Path, tmp_path: Path) -> None:
    """Another checkpoint under a version that is published, a pickle, and what is no checkpoint; the mirror stays."""
    mirror = tmp_path / "mirror"
    package(checkpoint, "1.2.0", mirror)
    before = {path: path.read_bytes() for path in mirror.rglob("*") if path.is_file()}
    damage(checkpoint)
    done = package(checkpoint, "1.2.0", mirror)
    assert done.returncode != 0
    assert reason in done.stderr
    assert {path: path.read_bytes() for path in mirror.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("version", ["../x", "1.0 0", "", "-rf", "a;b"])
def test_package_refuses_what_is_no_version(version: str, checkpoint: Path, tmp_path: Path) -> None:
    """A version cannot lead out of the mirror, or be an option or a command."""
    done = package(checkpoint, version, tmp_path / "mirror")
    assert (done.returncode, done.stdout) == (2, "")
    assert not (tmp_path / "mirror").exists()


@pytest.mark.parametrize(
    ("schema", "name"), [("gitlab-ci", "gitlab-ci.yml"), ("github-workflows", "github-actions.yml")]
)
def test_examples_follow_the_schema_of_their_service(schema: str, name: str) -> None:
    """GitLab and GitHub accept the files; the schemas come with check-jsonschema."""
    command = ["check-jsonschema", "--builtin-schema", f"vendor.{schema}", "-o", "json", str(CI / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert json.loads(done.stdout)["status"] == "ok", done.stdout


def stages(name: str) -> list[str]:
    text = (CI / name).read_text()
    if name == "gitlab-ci.yml":
        return list(yaml.safe_load(text)["stages"])
    return list(yaml.safe_load(text)["jobs"]) if name.endswith(".yml") else re.findall(r"stage\('(\w+)'\)", text)


@pytest.mark.parametrize("name", ["gitlab-ci.yml", "github-actions.yml", "Jenkinsfile"])
def test_each_example_has_all_stages_and_names_what_exists(name: str) -> None:
    """Package, check, staging, canary, fleet, undo, in this order; scripts, playbooks and variables exist."""
    text = (CI / name).read_text()
    assert stages(name) == list(STAGES)
    paths = re.findall(r"deploy/(?:ci|ansible)/[\w.]+", text)
    assert {"deploy/ansible/deploy.yml", "deploy/ansible/undo.yml", "deploy/ci/package", "deploy/ci/check"} <= {*paths}
    assert all((CODE / path).exists() for path in paths)
    known = (CODE / "deploy/ansible/roles/glm_rollout/meta/argument_specs.yml").read_text()
    assert all(f"{variable}:" in known for variable in re.findall(r"-e (\w+)=", text))
    assert text.count("{") == text.count("}")


@pytest.mark.long
def test_the_collection_passes_the_linter() -> None:
    """ansible-lint with its production profile finds nothing."""
    lint = subprocess.run(
        ["ansible-lint", "--nocolor", "-q"], cwd=CODE / "deploy/ansible", capture_output=True, text=True, timeout=600
    )
    assert lint.returncode == 0, lint.stdout + lint.stderr
