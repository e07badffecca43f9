"""The rollout page, which only reads; run by `app.py`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any

import streamlit as st

from ui.blocks import STYLE, phase_list, slot_cards, table
from ui.figures import clock, duration, moment, zone
from ui.frame import begin_page
from ui.language import choose_language
from ui.plots import Plot, plots, series
from ui.records import matching, phases_of, receipt_columns, receipt_rows, receipt_sentence, verdict_rows
from ui.rollout_texts import ROLLOUT_TEXTS, RolloutTexts
from ui.status import TICK, Document, Status, StatusReader, controller

NOW_INTERVAL = "1s"  # between two refreshes of slots and phases
PLOT_HEIGHT = 230  # pixels
PLOTS_INTERVAL = f"{TICK:g}s"
OUTCOMES = {"done": "green", "rolled back": "orange", None: "blue"}  # others are red


@st.cache_resource(show_spinner=False, on_release=StatusReader.close)
def status_reader(command: tuple[str, ...]) -> StatusReader:
    """Return the reader, which all sessions share."""
    return StatusReader(command)


@st.cache_data(show_spinner=False, max_entries=4)
def drawn(_reader: StatusReader, language: str, tick: int) -> tuple[dict[str, list[Any]], list[Plot]]:
    """Return the data and the plots at a tick, which all sessions share."""
    points = _reader.points(tick * TICK)
    return series(points), plots(points, ROLLOUT_TEXTS[language]) if points else []


def main() -> None:
    """Draw the page from what glmctl publishes."""
    language = _sidebar()
    texts = ROLLOUT_TEXTS[language]
    where = zone(st.context.timezone)
    reader = status_reader(tuple(controller()))
    rollouts = reader.status().rollouts
    st.html(STYLE)
    st.markdown(f"## {texts.rollout}")
    st.fragment(show_now, run_every=NOW_INTERVAL)(reader, texts, where, rollouts)
    st.markdown(f"### {texts.recent}")
    st.fragment(show_plots, run_every=PLOTS_INTERVAL)(reader, language)
    if rollouts is not None:
        st.markdown(f"### {texts.history}")
        show_history(rollouts, texts, where)


def _sidebar() -> str:
    """Draw the sidebar and return the chosen language."""
    begin_page()
    with st.sidebar:
        return choose_language()


def show_now(reader: StatusReader, texts: RolloutTexts, where: tzinfo, rollouts: tuple[Document, ...] | None) -> None:
    """Show the slots and the current or last rollout; `rollouts`: those that the history on this page lists."""
    status = reader.status()
    if status.rollouts is not rollouts:
        st.rerun()
    if status.document is None:
        show_unknown(status, texts)
        return
    document = status.document
    listen = document["listen"]
    st.caption(texts.listening.format(address=listen) if listen else texts.nothing_listens)
    st.html(slot_cards(document, texts))
    rollout = document["rollout"]
    if rollout is None:
        st.info(texts.no_rollout)
        return
    with st.container(border=True):
        record = next((one for one in rollouts or () if one["id"] == rollout["id"]), None)
        ended = record if record is not None and record["outcome"] else None
        show_head(rollout, texts, where)
        if rollout["interrupted"]:
            st.warning(texts.interrupted)
        st.html(phase_list(document["phases"], texts, where, datetime.now(UTC)))
        show_verdicts(rollout["analysis"], document.get("verdict"), texts)
        if ended is not None:
            show_receipt(ended, texts)


def show_unknown(status: Status, texts: RolloutTexts) -> None:
    """Say why there is no status."""
    if status.error is None:
        st.info(texts.starting)
        return
    st.warning(f"**{texts.unknown}**  \n{texts.unknown_hint}", icon=":material/cloud_off:")
    st.code(status.error, language=None, wrap_lines=True)


def show_head(rollout: Document, texts: RolloutTexts, where: tzinfo) -> None:
    """Show what the rollout does, when it began, and how it ended."""
    outcome = rollout["outcome"]
    colour = OUTCOMES.get(outcome, "red")
    badge = f":{colour}-badge[{texts.word(outcome) if outcome else texts.under_way}]"
    title = texts.title.format(kind=texts.word(rollout["kind"]), version=_plain(rollout["version"]))
    st.markdown(f"#### {title} {badge}")
    before = texts.before.format(version=_plain(rollout["previous"])) if rollout["previous"] else ""
    took = duration(rollout["seconds"]) if rollout["seconds"] is not None else ""
    facts = (rollout["id"], before, rollout["strategy"], rollout.get("operator"), _began(rollout, where), took)
    st.caption(" · ".join(filter(None, facts)))
    if rollout["reason"]:
        st.text(rollout["reason"])


def show_verdicts(verdicts: Sequence[Document], so_far: Document | None, texts: RolloutTexts) -> None:
    """Show the figures of each window; those of the present one are not judged yet."""
    rows = [row for verdict in verdicts for row in verdict_rows(verdict, texts)]
    if so_far and so_far["metrics"]:
        rows += [[*row[:-1], texts.so_far] for row in verdict_rows(so_far, texts)]
    if not rows:
        return
    titles = [texts.window, texts.metric, texts.candidate, texts.live_side, texts.counts, texts.counts_of_live]
    st.markdown(f"**{texts.verdict}**")
    st.html(table(texts.verdict, [*titles, texts.p_value, texts.result], rows))
    for verdict in verdicts:
        if verdict["reason"]:
            st.text(verdict["reason"])


def show_receipt(record: Document, texts: RolloutTexts) -> None:
    """Show the counts of all requests during the rollout."""
    receipt = record["receipt"]
    if receipt is None:
        return
    st.markdown(f"**{texts.receipt}**")
    st.markdown(receipt_sentence(receipt, texts))
    st.html(table(texts.receipt, receipt_columns(texts), receipt_rows(receipt, texts)))


def show_plots(reader: StatusReader, language: str) -> None:
    """Show the last ten minutes."""
    texts = ROLLOUT_TEXTS[language]
    data, specifications = drawn(reader, language, int(time.time() // TICK))
    if not specifications:
        st.caption(texts.no_points)
        return
    st.caption(texts.recent_hint)
    places = [st.container(), *st.columns(2), *st.columns(2)]  # the share as a band, and two lines in each row
    for number, (place, (title, specification)) in enumerate(zip(places, specifications, strict=True)):
        with place:
            st.markdown(f"**{title}**")
            st.vega_lite_chart(data, specification, height=PLOT_HEIGHT, key=f"plot {number}", alt=title)


def show_history(rollouts: Sequence[Document], texts: RolloutTexts, where: tzinfo) -> None:
    """Show past rollouts, newest first, and one of them in full."""
    if not rollouts:
        st.caption(texts.no_rollout)
        return
    columns = st.columns(3)
    chosen = {}
    for column, (name, title) in zip(
        columns, {"kind": texts.kind, "version": texts.version, "outcome": texts.outcome}.items(), strict=True
    ):
        values = list(dict.fromkeys(one[name] for one in reversed(rollouts) if one[name]))
        with column:
            chosen[name] = st.selectbox(
                title, ["", *values], key=f"filter {name}", format_func=lambda value: texts.word(value) or texts.all
            )
    found = matching(rollouts, chosen)
    if not found:
        st.caption(texts.no_match)
        return
    titles = ["", texts.kind, texts.version, texts.previous, texts.outcome]
    titles += [texts.began, texts.seconds, texts.longest_wait, texts.lost_requests]
    st.html(table(texts.history, titles, [_listed(one, texts, where) for one in found]))
    show_details(found, texts, where)


def show_details(found: Sequence[Document], texts: RolloutTexts, where: tzinfo) -> None:
    """Show one rollout in full; the address of the page names it."""
    by_id = {one["id"]: one for one in found}
    named = st.query_params.get("rollout")
    identifier = st.selectbox(
        texts.details,
        list(by_id),
        index=list(by_id).index(named) if named in by_id else None,
        key="rollout",
        format_func=lambda name: f"{name} · {texts.word(by_id[name]['kind'])} {by_id[name]['version']}",
    )
    if identifier is None:
        return
    st.query_params["rollout"] = identifier
    record = by_id[identifier]
    with st.container(border=True):
        show_head(record, texts, where)
        st.html(phase_list(phases_of(record), texts, where, datetime.now(UTC)))
        show_verdicts(record["analysis"], None, texts)
        show_receipt(record, texts)


def _listed(record: Document, texts: RolloutTexts, where: tzinfo) -> list[str]:
    receipt, pause = record["receipt"], record["pause_ms"]
    return [
        record["id"],
        texts.word(record["kind"]),
        record["version"],
        record["previous"] or "-",
        texts.word(record["outcome"]) if record["outcome"] else texts.under_way,
        _began(record, where),
        duration(record["seconds"]),
        duration(None if pause is None else pause / 1000),
        "-" if receipt is None else str(receipt["lost"]),
    ]


def _began(record: Document, where: tzinfo) -> str:
    began = moment(record["started_at"])
    return f"{began.astimezone(where):%Y-%m-%d} {clock(record['started_at'], where)}" if began else ""


def _plain(text: str) -> str:
    """Escape what Markdown would interpret; versions have letters, digits and `.-_+`."""
    return text.replace("_", r"\_")


main()
