"""Every command line of the documents is run: typed here on booted hosts, or by the test that `ELSEWHERE` names.

Pages are typed line by line as they stand, by root behind `#` and by a user behind `$`; `SUBSTITUTIONS` is all that is
changed. A new line of these pages is typed by itself; one of another page needs its entry here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.console import CODE, PAGES, lines
from tests.document_hosts import CHECKPOINTS, REPOSITORY, USER, DocumentHost, document_host
from tests.test_newcomer import INSTALLS

CHECKOUT = f"/home/{USER}/glm-handover"


class Elsewhere(NamedTuple):
    """Lines that are not typed here: why, and the test that runs them, or their like; empty if none does."""

    why: str
    test: str = ""


README = Elsewhere("typed on a bare host", "test_newcomer.py")
TRIES = Elsewhere("typed on a bare host", "test_newcomer.py::test_demo_and_tests_run_from_a_clone")
TUTORIAL = Elsewhere("typed on a bare host", "test_newcomer.py::test_rollouts_by_hand_are_as_the_tutorial_tells")
CHINESE = Elsewhere("README has the same", "test_documents.py::test_both_readmes_have_the_same_commands_and_figures")
FLEET = Elsewhere("played on three hosts", "test_fleet.py::test_three_bare_hosts_serve_after_two_playbooks")
WHEELS = Elsewhere("such wheels are installed", "test_installed_host.py::test_the_lines_install_a_host_that_waits")
BENCH = Elsewhere("takes half an hour", "test_bench_peers.py::test_all_benchmarks_run")
GPU = Elsewhere("needs a GPU; with a small model", "test_bench_gpu.py::test_every_figure_is_measured")
VLLM = Elsewhere("needs vLLM", "test_vllm_rollout.py::test_from_ours_to_vllm_under_load")
VLLM_SERVE = Elsewhere("a command of vLLM, which the page translates", VLLM.test)
ENVIRONMENT = Elsewhere("downloads gigabytes", "test_environments.py::test_an_environment_is_made_with_vllm")
PACKAGE = Elsewhere("builds for minutes", "test_package.py::test_the_package_installs_and_leaves_nothing")
MONITORING = Elsewhere("runs until Ctrl-C", "test_monitoring_host.py::test_make_monitoring")
CLIENTS = Elsewhere("downloads packages", "clients/test_packages.py")
PICTURES = Elsewhere("changes pictures that are checked", "test_documents.py::test_pictures_are_real")
LOCK = Elsewhere("needs a package index", "test_documents.py::test_a_lock_file_has_every_dependency_with_hashes")
SBOM = Elsewhere("needs a package index")
LONG = Elsewhere("all tests, for hours: before a release")

ELSEWHERE = {
    "README.md": {".*": README},
    "README.zh-CN.md": {".*": CHINESE},
    "docs/tutorial.md": {".*": TUTORIAL},
    "docs/DEVICE.md": {"make bench-gpu(?! ARGS='--only ).*": GPU},
    "docs/how-to/ci.md": {"make lint|make test|make setup .*": TRIES, "make test-all": LONG},
    "docs/how-to/fleet.md": {"cd deploy/ansible|cp inventory.*|ansible-playbook .*": FLEET},
    "docs/how-to/monitoring.md": {"make monitoring": MONITORING},
    "docs/install.md": {"make deb|apt-get install ./build/.*|systemctl enable --now glm.target": PACKAGE},
    "docs/vllm.md": {
        "glmctl env make .*": ENVIRONMENT,
        "cat engine.json|glmctl release add .*|glmctl deploy 2.0.0": VLLM,
        "vllm serve .*": VLLM_SERVE,
    },
    "deploy/ansible/README.md": {"ansible-playbook .*": FLEET, "pip wheel .*": WHEELS},
    "tests/bench/README.md": {"make bench.*|python -m tests.bench.plots .*": BENCH},
}
"""By page and by the whole line, as a regular expression."""

TARGETS = {
    "setup": TRIES,
    "demo": TRIES,
    "monitoring": MONITORING,
    "test": TRIES,
    "test-all": LONG,
    "test-fleet": FLEET,
    "test-vllm": VLLM,
    "vllm": VLLM,
    "clients": CLIENTS,
    "clients-table": CLIENTS,
    "lint": TRIES,
    "bench": BENCH,
    "screenshots": PICTURES,
    "lock": LOCK,
    "sbom": SBOM,
    "deb": PACKAGE,
}
"""The targets of make that are not typed here; sentences name them too."""

MAKE = (
    "make help",
    "make reference && git diff --exit-code",
    "make docs",
    "make fuzz ARGS='--hours 0.01'",
    "make soak ARGS='--cutovers 4 --round 2'",
    "make clean && ! ls -d .venv site",
)
"""What is typed besides the lines of pages, the long ones short."""

LAST_ID = "$(glmctl history --json | grep --only-matching --extended-regexp '[0-9]{8}-[0-9]{6}-[0-9]{2}' | tail -1)"
ALICE = r"$(sed -n 's/^alice \\([^ ]*\\).*/\\1/p' /etc/glm/keys)"
SUBSTITUTIONS = {
    # names
    r"\bREPOSITORY\b": REPOSITORY,
    r"\./GLM-4\.6V-Flash-2|\./checkpoint\b": f"{CHECKPOINTS}/1.1.0",
    r"\./GLM-4\.6V-Flash|\./1\.0\.0\b": f"{CHECKPOINTS}/1.0.0",
    r"\./checks\.json": "/var/tmp/checks.json",
    r"req-8c1f…|\bREQUEST_ID\b(?!=)": "after",
    r"\b\d{8}-\d{6}-\d\d\b": LAST_ID,
    r"(?<==)KEY\b": ALICE,
    r"bench-gpu-….jsonl": "bench-gpu-*.jsonl",
    # what takes long, asks, or does not end
    r"(--step|--bake) \d+[sm]": r"\1 2s",
    r"-k cutover": "tests/test_frame.py",
    r"^(glmctl logs -f)$": r"timeout 5 \1 || [ $? -eq 124 ]",
    r"^apt-get install": "apt-get install --yes --no-upgrade",
    r"^glmctl uninstall$": "glmctl uninstall --yes",
    r"^glmctl uninstall --purge$": "/opt/glm/.venv/bin/glmctl install && glmctl uninstall --purge --yes",
    r"^(systemctl edit \S+)$": r"EDITOR='cp /var/tmp/drop-in' script -qec '\1' /dev/null < /dev/null",
    # the hosts have no index with the hashes, and no model is asked for here
    r"--require-hashes -r requirements/(\w+)\.txt": r"-r /var/tmp/\1.names",
    r"^\.venv/bin/glmctl install$": r"\g<0> && echo GLM_ENGINE=dummy >> /etc/glm/glm.env",
}
"""What is changed in a line: the names that a page leaves to its reader, and what this test cannot wait for."""

CHECKS = '[{"name": "any", "question": "Which colour?", "max_tokens": 4}]'
BEFORE = {
    "docs/logs.md": "curl -sS -o /dev/null -H 'X-Request-Id: after' 127.0.0.1:8000/v1/models",
    "docs/how-to/ci.md": f"printf %s '{CHECKS}' > /var/tmp/checks.json",
}
"""What root has done on the host, before a page is typed."""
AFTER = {
    "docs/how-to/keys.md": "rm /etc/glm/keys; cp /var/tmp/glm.env /etc/glm/glm.env",
    "docs/logs.md": "cp /var/tmp/glm.env /etc/glm/glm.env; rm /etc/systemd/system/glm@.service.d/override.conf; "
    "systemctl daemon-reload; glmctl reload",
}
"""What makes the host as it was, for the next page."""

ON_ONE_HOST = (
    "docs/logs.md", "docs/how-to/monitoring.md", "docs/runbook.md", "docs/how-to/ci.md", "docs/how-to/page.md",
    "docs/how-to/keys.md", "docs/DEVICE.md", "docs/install.md",
)  # fmt: skip
"""In this order: the last one removes what was installed."""
BARE = ("docs/how-to/gpu-host.md",)
"""These install a host themselves."""


def elsewhere(page: str, text: str) -> Elsewhere | None:
    """What runs a line that is not typed here."""
    return next((found for one, found in ELSEWHERE.get(page, {}).items() if re.fullmatch(one, text)), None)


def typed(text: str) -> str:
    """What is typed for a line."""
    for pattern, replacement in SUBSTITUTIONS.items():
        text = re.sub(pattern, replacement, text)
    return text


HERE = {page: [line for line in lines(page) if not elsewhere(page, line.text)] for page in PAGES}


def test_every_line_is_typed_or_run_elsewhere() -> None:
    """A page with other lines is typed as a whole; nothing in the tables is of no use."""
    assert {page for page, left in HERE.items() if left} == {*ON_ONE_HOST, *BARE}
    texts = [line.text for left in HERE.values() for line in left]
    assert len(texts) > 40
    assert [one for one in SUBSTITUTIONS if not any(re.search(one, text) for text in texts)] == []
    unused = [one for page, table in ELSEWHERE.items() for one in table
              if not any(re.fullmatch(one, line.text) for line in lines(page))]  # fmt: skip
    assert unused == []


def test_every_target_of_make_is_run() -> None:
    """Those that the Makefile explains, and so those that sentences name."""
    here = {line.text for left in HERE.values() for line in left} | set(MAKE)
    typed_here = {text.split()[1] for text in here if text.startswith("make ")}
    explained = set(re.findall(r"^([a-z-]+):.*## ", (CODE / "Makefile").read_text(), re.MULTILINE))
    assert explained == typed_here | TARGETS.keys()


def test_the_tests_that_are_named_exist() -> None:
    """Each file, and a function in it; whatever no test runs has a reason."""
    for one in {*TARGETS.values(), *(found for table in ELSEWHERE.values() for found in table.values())}:
        assert one.why
        if one.test:
            file, _, function = one.test.partition("::")
            assert re.search(rf"^def {function or 'test_'}", (CODE / "tests" / file).read_text(), re.MULTILINE), one


def type_page(host: DocumentHost, page: str, directory: str) -> None:
    """Type the lines of a page: root's in `directory`, those of the user in the checkout, with its environment."""
    for is_root, block in groupby(HERE[page], lambda line: line.is_root):
        texts = [typed(line.text) for line in block]
        if is_root:
            host.type(*texts, directory=directory, seconds=900)
        else:
            host.type(". .venv/bin/activate", *texts, user=USER, directory=CHECKOUT, seconds=900)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]) -> Iterator[DocumentHost]:
    """A host that was installed by README, without a model: 1.0.0 is live, and a user has a checkout."""
    with document_host(tmp_path_factory.mktemp("pages"), checkpoints) as host:
        host.type(f"git clone {REPOSITORY} {CHECKOUT}", "cd glm-handover", "make setup", user=USER, seconds=900)
        host.type(*(line.text for line in INSTALLS), directory=CHECKOUT, seconds=900)
        host.sh(f"""
            printf 'GLM_ENGINE=dummy\\nGLM_THREADS=1\\n' > /etc/glm/glm.env
            cp /etc/glm/glm.env /var/tmp/glm.env
            printf '[Service]\\nIPAddressAllow=192.0.2.10\\n' > /var/tmp/drop-in
            usermod -aG glm,systemd-journal {USER}
            for version in 1.0.0 1.1.0; do glmctl release add {CHECKPOINTS}/$version; done
            glmctl deploy 1.0.0
        """)
        yield host


@pytest.mark.long
@pytest.mark.parametrize("page", [page for page in ON_ONE_HOST if page != "docs/install.md"])
def test_lines_of_a_page_work(page: str, serving: DocumentHost) -> None:
    """Each ends with 0 on a host that serves."""
    serving.sh(BEFORE.get(page, ""))
    type_page(serving, page, "/opt/glm")
    serving.sh(AFTER.get(page, ""))
    assert '"1.' in serving.sh("curl -sS 127.0.0.1:8000/version"), "it serves as before"


@pytest.mark.long
def test_targets_of_make_work(serving: DocumentHost) -> None:
    """In the checkout of a user who has none of root's rights."""
    serving.type(*MAKE, user=USER, directory=CHECKOUT, seconds=1500)


@pytest.mark.long
def test_the_removal_works(serving: DocumentHost) -> None:
    """The lines of docs/install.md that end the life of a host."""
    type_page(serving, "docs/install.md", "/opt/glm")
    assert serving.sh("find /etc /usr/local/bin /srv /var/lib -name '*glm*' ! -path '*/share/*'").split() == []


def names(lock: Path) -> list[str]:
    """The packages of a lock file that this environment has, with those that build the checkout."""
    here = {re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower() for found in metadata.distributions()}
    builds = {"hatchling", "editables", "packaging", "pathspec", "pluggy", "trove-classifiers"}
    locked = re.findall(r"^([a-z0-9._-]+)==", lock.read_text(), re.MULTILINE)
    return [name for name in locked if name in here | builds]


@pytest.mark.long
@pytest.mark.parametrize("page", BARE)
def test_a_page_installs_a_bare_host(
    page: str, tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]
) -> None:
    """And what it installs serves; of a lock file the names count, because the hosts have other wheels."""
    with document_host(tmp_path_factory.mktemp("bare"), checkpoints) as host:
        for lock in (CODE / "requirements").glob("*.txt"):
            host.sh(f"printf '%s\\n' {' '.join(names(lock))} > /var/tmp/{lock.stem}.names")
        type_page(host, page, "~")
        assert "1.0.0" in host.sh("curl -sS 127.0.0.1:8000/version")
