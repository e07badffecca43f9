"""docs/runbook.md has a section for everything that sends somebody there, and each link leads somewhere."""

from __future__ import annotations

import re
import shlex
from typing import get_args

import click
import pytest

from deploy import errors
from deploy.cli import glmctl
from deploy.reports.files import Kind
from tests.monitoring.promql import CODE
from tests.test_monitoring import ALERTS

PAGE = (CODE / "docs/runbook.md").read_text()
SECTIONS = dict(re.findall(r"^### (.+)\n\n((?:(?!^#).*\n)+)", PAGE, re.MULTILINE))


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


ANCHORS = {anchor(heading) for heading in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)}


def codes() -> set[int]:
    """The exit codes: of errors, of usage errors, of success, and those in `glmctl --help`."""
    found = {0, click.UsageError.exit_code}
    for one in vars(errors).values():
        if isinstance(one, type) and issubclass(one, errors.GlmError):
            found.add(one.exit_code)
    return found | {int(code) for code in re.findall(r"^ +(\d)  ", glmctl.help or "", re.MULTILINE)}


def test_every_alert_has_its_section_and_names_it() -> None:
    """The annotation `runbook` of an alert is the address of the section with its name, and no section is left over."""
    alerts = {heading for heading in SECTIONS if heading.startswith("Glm")}
    assert alerts == set(ALERTS)
    for name, rule in ALERTS.items():
        page, _, found = rule["annotations"]["runbook"].partition("#")
        assert (CODE / page).is_file()
        assert (found, found in ANCHORS) == (anchor(name), True)


@pytest.mark.parametrize("heading", [heading for heading in SECTIONS if heading.startswith("Glm")])
def test_the_section_of_an_alert_says_what_to_look_at_and_what_to_do(heading: str) -> None:
    """After what it means."""
    assert re.match(r"(?!Look at|Do:).+\n(.*\n)*\nLook at: (.*\n)*\nDo: ", SECTIONS[heading])


def test_every_exit_code_has_its_section() -> None:
    """And no other one."""
    found = {int(code) for code in re.findall(r"^### Exit code (\d+)$", PAGE, re.MULTILINE)}
    assert found == codes()
    assert len(found) > 8


def test_every_kind_of_finding_has_its_section() -> None:
    """And no other one; each says what to do."""
    found = {heading.removeprefix("doctor: "): text for heading, text in SECTIONS.items() if "doctor: " in heading}
    assert set(found) == set(get_args(Kind))
    assert [kind for kind, text in found.items() if "Do:" not in text and "](#" not in text] == []


def test_commands_of_glmctl_exist() -> None:
    """Each that is named, with the options that it is named with."""
    named = re.findall(r"^# (glmctl .+?)(?:  |$)|`(glmctl [^`]+)`", PAGE, re.MULTILINE)
    found = set()
    for words in (shlex.split(one or other)[1:] for one, other in named):
        command: click.Command = glmctl
        for word in words:
            if isinstance(command, click.Group) and word in command.commands:
                command = command.commands[word]
                found.add(word)
            elif word.startswith("-"):
                assert word in {"--help", *(option for one in command.params for option in one.opts)}, words
        assert command is not glmctl or words[0] == "COMMAND", words
    assert found >= {"logs", "doctor", "rollback", "reload", "resume", "history", "prune"}


def test_links_lead_somewhere() -> None:
    """To a section of this page, or to a file of the checkout."""
    links = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert len(links) > 10
    for link in links:
        path, _, found = link.partition("#")
        assert (CODE / "docs" / path).exists(), link
        assert path or found in ANCHORS, link


def test_metrics_of_the_dashboard_are_called_as_there() -> None:
    """What the page puts in quotes to look at is the title of a panel."""
    from deploy.monitoring.panels import ROWS

    titles = {panel.title for panels in ROWS.values() for panel in panels}
    named = set()
    for heading, text in SECTIONS.items():
        if heading.startswith("Glm") and heading != "GlmRestarted":
            named |= set(re.findall(r'"([A-Z][^"]+)"', text))
    assert len(named) > 8
    assert {name for name in named if name not in titles and not any(one.startswith(name) for one in titles)} == set()
