"""The pages that are generated from the source are committed as the source is."""

from __future__ import annotations

import re

import click
import pytest
from click.shell_completion import ShellComplete

from deploy import __version__, cli
from deploy.cli import glmctl
from deploy.commands.completion import SHELLS
from service.settings import Settings
from tests.box import CODE
from tests.reference import PAGES
from tests.reference.cli import verbs


@pytest.mark.parametrize("name", PAGES)
def test_committed_pages_are_those_of_the_source(name: str) -> None:
    """`make reference` would change nothing."""
    assert (CODE / name).read_text() == PAGES[name](), f"{name} is out of date: make reference"


def test_every_verb_and_option_is_in_the_manual_and_on_the_page() -> None:
    """Hidden options are in neither."""
    manual = (CODE / "docs/glmctl.1").read_text().replace("\\-", "-")
    page = (CODE / "docs/reference/cli.md").read_text()
    for name, command in verbs():
        assert f"\n## {name}\n" in page
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                for option in parameter.opts:
                    assert (option in manual) is not parameter.hidden, option
                    assert (option in page) is not parameter.hidden, option


def test_the_manual_has_no_line_that_roff_would_take_for_a_macro() -> None:
    """A line begins with a dot only where one of the macros of man(7) is meant."""
    macros = {".TH", ".SH", ".SS", ".PP", ".TP", ".nf", ".fi", ".B", ".BR", ".I"}
    lines = (CODE / "docs/glmctl.1").read_text().splitlines()
    found = {line.split()[0] for line in lines if line.startswith((".", "'")) and not line.startswith('.\\"')}
    assert found <= macros
    assert [
        line for line in lines if re.search(r"(?<!\\)-[a-z]", line) and not line.startswith((".TH", '.\\"', ".I"))
    ] == []


def test_every_setting_has_a_description() -> None:
    """The reference has nothing to say about one without."""
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_scripts(shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each shell gets a script that asks glmctl."""
    monkeypatch.setattr("sys.argv", ["glmctl", "completion", shell])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    script = capsys.readouterr().out
    assert f"_GLMCTL_COMPLETE={shell}_complete" in script
    assert "glmctl" in script


@pytest.mark.parametrize(
    ("words", "begun", "expected"),
    [
        ([], "roll", {"rollback"}),
        (["release"], "re", {"remove"}),
        (["deploy", "1.1.0"], "--str", {"--strategy"}),
        (["deploy", "--strategy"], "", {"auto", "overlap", "weights", "swap"}),
        (["logs", "--slot"], "g", {"green"}),
    ],
)
def test_completions(words: list[str], begun: str, expected: set[str]) -> None:
    """Verbs, options and values are completed from the commands themselves."""
    found = ShellComplete(glmctl, {}, "glmctl", "_GLMCTL_COMPLETE").get_completions(words, begun)
    assert {item.value for item in found} == expected


def test_the_version_is_written_in_one_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`glmctl --version`, the package and the manual page read it; the newest heading of the changelog is it."""
    monkeypatch.setattr("sys.argv", ["glmctl", "--version"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().out == f"glmctl, version {__version__}\n"
    project = (CODE / "pyproject.toml").read_text()
    assert not re.search(r'^version = "', project, re.MULTILINE)
    assert 'dynamic = ["version"]' in project
    assert 'path = "deploy/__init__.py"' in project
    headings = re.findall(r"^## \[([^]]+)\]", (CODE / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[:2] == ["Unreleased", __version__]
