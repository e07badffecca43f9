"""README and documents: links lead somewhere, and what is to be typed exists."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from deploy.cli import glmctl
from deploy.errors import DrainCut
from tests.box import CODE
from tests.downloads import summary

PAGES = sorted(
    {
        *CODE.glob("*.md"),
        *(CODE / "docs").rglob("*.md"),
        CODE / "deploy/ansible/README.md",
        CODE / "tests/clients/README.md",
    }
)
NAMES = [str(path.relative_to(CODE)) for path in PAGES]
LINK = re.compile(r"\[[^\]]*\]\((?!https?:|mailto:)([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MAKEFILE = (CODE / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
VARIABLES = {*re.findall(r"^([A-Z_]+) \?=", MAKEFILE, re.MULTILINE), "ARGS"}


@cache
def anchors(path: Path) -> set[str]:
    """The anchors of a page, as GitHub and mkdocs make them; code is no heading."""
    text = FENCE.sub("", path.read_text())
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        found[anchor] = found.get(anchor, 0) + 1
    return set(found)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    """To a file of the repository, and to a heading in it."""
    path = CODE / name
    for link in LINK.findall(FENCE.sub("", path.read_text())):
        target, _, anchor = link.partition("#")
        there = path if not target else (path.parent / target).resolve()
        assert there.exists(), link
        assert not anchor or anchor in anchors(there), link


def commands(text: str) -> Iterator[tuple[str, ...]]:
    """The commands of fenced blocks, in words: after a prompt, each part of a list and of a pipeline."""
    for kind, block in FENCE.findall(text):
        for line in block.splitlines() if kind == "console" else ():
            if line.startswith(("$ ", "# ")):
                words = shlex.shlex(re.split(r" {3,}", line[2:])[0], posix=True, punctuation_chars=True)
                words.whitespace_split, words.commenters = True, ""  # a comment stands three columns and more behind
                for is_operator, part in itertools.groupby(words, lambda word: set(word) <= set("&|;<>()")):
                    if not is_operator:
                        yield tuple(part)


def parse(words: list[str]) -> None:
    """Parse the words after `glmctl` as click does, without running anything; raises click.UsageError."""
    command: click.Command = glmctl
    parent = None
    while True:
        context = command.make_context(command.name or "glmctl", words, parent=parent)
        if not isinstance(command, click.Group):
            return
        _, verb, words = command.resolve_command(context, [*context._protected_args, *context.args])
        assert verb is not None
        command, parent = verb, context


LINES = sorted({(name, one) for name in NAMES for one in commands((CODE / name).read_text())})


def test_there_is_something_to_type() -> None:
    """The expressions above find what is meant; the README's first commands are among them."""
    assert len(LINES) > 60
    for line in ("make demo", "make test", "glmctl deploy 1.0.0"):
        assert ("README.md", tuple(line.split())) in LINES


@pytest.mark.parametrize(("name", "line"), [one for one in LINES if one[1][0] == "glmctl"])
def test_command_lines_of_glmctl_parse(name: str, line: tuple[str, ...]) -> None:
    """Verb, options and values are as the program has them."""
    words = list(line[1:])
    parse(["sandbox", "--", "true"] if words[0] == "sandbox" else words)


@pytest.mark.parametrize("line", ["glmctl frobnicate", "glmctl deploy 1 --nonsense", "glmctl deploy 1 --bake soon"])
def test_wrong_command_lines_do_not_parse(line: str) -> None:
    """Otherwise the test above would say nothing."""
    with pytest.raises(click.UsageError):
        parse(shlex.split(line)[1:])


@pytest.mark.parametrize(("name", "line"), [one for one in LINES if one[1][0] == "make"])
def test_targets_of_make_exist(name: str, line: tuple[str, ...]) -> None:
    """And the variables that are set."""
    for word in line[1:]:
        variable, given, _ = word.partition("=")
        assert variable in VARIABLES if given else word in TARGETS


def test_modules_and_files_of_command_lines_exist() -> None:
    """`python -m MODULE`, and files of this repository that a command reads."""
    modules = {line[2] for _, line in LINES if re.fullmatch(r"python[\d.]*", line[0]) and line[1] == "-m"} - {"venv"}
    assert modules
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []
    files = {word for _, line in LINES for word in line if re.match(r"(requirements|service)/", word)}
    assert files
    assert [name for name in files if not (CODE / name).exists()] == []


@pytest.mark.parametrize("name", NAMES)
def test_verbs_and_options_in_sentences_exist(name: str) -> None:
    """Every `glmctl VERB --option` in code within a sentence."""
    for code in re.findall(r"`glmctl ([a-z][^`]*)`", FENCE.sub("", (CODE / name).read_text())):
        command: click.Command = glmctl
        for word in code.split():
            if isinstance(command, click.Group) and re.fullmatch(r"[a-z]+", word):
                assert word in command.commands, code
                command = command.commands[word]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for option in re.findall(r"(?<!\S)--?[a-z][a-z0-9-]*", code.partition(" -- ")[0]):
            assert option in known | {"--help", "-h"}, code


# what README says


def readme(name: str = "README.md") -> str:
    return (CODE / name).read_text()


def test_exit_code_6_and_the_promise_say_the_same() -> None:
    """The one case in which an answer is cut has its exit code, its option, and how to exclude it."""
    for name, cut in (("README.md", "cut"), ("README.zh-CN.md", "截断")):
        paragraph = next(
            one for one in readme(name).split("\n\n") if f"{DrainCut.exit_code}" in one and "--drain" in one
        )
        assert cut in paragraph
        assert "GLM_MAX_SECONDS" in paragraph
        assert "No answer is cut" not in readme(name)


def test_both_readmes_have_the_same_commands_and_figures() -> None:
    """The Chinese one is the same in Chinese: its blocks, its table of figures, its pictures."""
    english, chinese = readme(), readme("README.zh-CN.md")
    assert [block for kind, block in FENCE.findall(english) if kind == "console"] == [
        block for kind, block in FENCE.findall(chinese) if kind == "console"
    ]
    for pattern in (r"\d{3},\d{3}", r"\]\((docs/[^)]+)\)", r"\d{4}-\d\d-\d\d"):
        assert set(re.findall(pattern, english)) == set(re.findall(pattern, chinese))


def test_a_readme_is_short() -> None:
    """A screen and a half or two of a large window; everything else is in docs/."""
    assert all(len(readme(name).splitlines()) <= 130 for name in ("README.md", "README.zh-CN.md"))


def test_pictures_are_real() -> None:
    """As wide as `make screenshots` makes them, and the transcript is what it wrote."""
    from PIL import Image

    for name in re.findall(r"\]\((docs/images/[^)]+\.png)\)", readme()):
        with Image.open(CODE / name) as picture:
            assert picture.width == 1280
            assert len(picture.resize((64, 64)).getcolors(1 << 12) or range(1 << 12)) > 10, "it is empty"
    transcript = (CODE / "docs/images/deploy.txt").read_text().rstrip()
    assert transcript in readme()
    assert "Nothing was lost" in transcript


# the lock files


LOCKS = {name: (CODE / "requirements" / name).read_text() for name in ("cuda.txt", "cpu.txt")}


def locked(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+) \\$", text, re.MULTILINE))


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_has_every_dependency_with_hashes_and_no_address(name: str) -> None:
    """So that it is good on every host: no index, no path of the machine that made it."""
    packages = locked(LOCKS[name])
    for dependency in tomllib.loads((CODE / "pyproject.toml").read_text())["project"]["dependencies"]:
        assert re.split(r"[<>=]", dependency)[0] in packages
    blocks = re.split(r"^(?=[a-z0-9])", LOCKS[name], flags=re.MULTILINE)[1:]
    assert len(blocks) == len(packages)
    assert [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block] == []
    assert not re.search(r"://|(?<!\w)/\w|^-", LOCKS[name], re.MULTILINE)


def test_builds_of_torch() -> None:
    """One for GPUs, with the number of packages that README tells; one without CUDA; both of the tested version."""
    cuda, cpu = (locked(LOCKS[name]) for name in ("cuda.txt", "cpu.txt"))
    assert (cuda["torch"], cpu["torch"]) == ("2.13.0", "2.13.0+cpu")
    assert len([name for name in cuda if name.startswith("nvidia-")]) == 16
    assert re.search(r"16\s+packages named `nvidia-", readme())
    assert {name for name in cpu if name.startswith(("nvidia-", "cuda-", "triton"))} == {"nvidia-ml-py"}


@pytest.mark.parametrize(
    ("names", "said"),
    [(["torch", "nvidia-nccl-cu13", "sympy"], "the CUDA build"), (["torch", "sympy"], "without CUDA")],
)
def test_setup_says_what_it_is_about_to_download(names: list[str], said: str) -> None:
    """From pip's own report, whatever the index; for the large build it says how to get the small one."""
    report = {"install": [{"metadata": {"name": name, "version": "2.13.0"}} for name in names]}
    text = summary(json.loads(json.dumps(report)))
    assert said in text
    assert f"{len(names) - 1} package" in text
    assert ("make setup TORCH_INDEX=" in text) is (said == "the CUDA build")
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.long
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """With every page, link and anchor; nothing but https links leads out of it."""
    pytest.importorskip("mkdocs", reason="make setup installs mkdocs-material")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(CODE / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    for name in ("index.html", "reference/cli/index.html", "SECURITY/index.html", "how-it-works/index.html"):
        assert (tmp_path / name).stat().st_size > 1000
    assert '<pre class="mermaid">' in (tmp_path / "how-it-works/index.html").read_text()
