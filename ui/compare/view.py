"""The compare page as it is drawn."""

from __future__ import annotations

import logging
import sqlite3

import streamlit as st

from ui.blocks import table
from ui.chat.browser import browser_id
from ui.chat.composer import Draft, compose, read_input, show_draft
from ui.chat.messages import REPLY_INTERVAL, show_partial, show_question, show_reasoning, timing
from ui.chat.texts import chat_texts, escape
from ui.client import Fault, LiveSlot, ServiceClient, ServiceError
from ui.compare.comparison import Comparison, Side, connect_to_slot, find_sides, slot_socket
from ui.compare.differences import mark_differences
from ui.compare.texts import COMPARE_TEXTS, CompareTexts
from ui.compare.votes import CHOICES, VoteStore, open_votes
from ui.conversation import Reply
from ui.texts import LANGUAGES, Texts

__all__ = ["show_compare"]

SIDES_INTERVAL = "2s"  # between two looks at which slots answer
COLOURS = {"blue": "blue", "green": "green"}  # of a slot's badge

STYLE = """
<style>
  .stMainBlockContainer { max-width: 72rem; padding-top: 3.5rem; }
  .stStatusWidget, [data-testid="stStatusWidget"] { display: none; }
  [data-stale="true"] { opacity: 1 !important; transition: none !important; }
  .stChatMessage [data-testid="stText"] { white-space: pre-wrap; overflow-wrap: anywhere; }
  .stMain [data-testid="stMarkdownContainer"] { overflow-wrap: anywhere; }
  .glm-answer { white-space: pre-wrap; overflow-wrap: anywhere; }
  .glm-answer mark { background: #e8a63366; color: inherit; border-radius: .2rem; padding: 0 .1rem; }
  .glm-table { overflow-x: auto; } .glm-table table { border-collapse: collapse; font-size: .875rem; width: 100%; }
  .glm-table :is(th, td) { padding: .3rem .6rem; border-bottom: 1px solid #8884; text-align: left;
    white-space: nowrap; }
  .glm-table th { font-weight: 400; opacity: .75; } .glm-table td { font-variant-numeric: tabular-nums; }
</style>
"""

Sides = tuple[Side, Side]

logger = logging.getLogger(__name__)


def show_compare(client: ServiceClient, language: str) -> None:
    """Draw the page."""
    texts, words = LANGUAGES[language], COMPARE_TEXTS[language]
    votes = st.cache_resource(show_spinner=False, on_release=VoteStore.close)(open_votes)()
    draft: Draft = st.session_state.setdefault("compare draft", Draft())
    st.html(STYLE)
    st.markdown(f"## {words.title}")
    sides = look(client)
    st.fragment(show_sides, run_every=SIDES_INTERVAL)(client, sides, texts, words)
    comparison: Comparison | None = st.session_state.get("comparison")
    if comparison is not None:
        show_comparison(comparison, votes, texts, words)
    show_tallies(votes, words)
    show_draft(draft, texts)
    running = comparison is not None and not comparison.complete
    label = words.no_prompt if isinstance(sides, Side) else words.prompt
    attempt = read_input(label, "prompt", draft, disabled=running or not isinstance(sides, tuple))
    if attempt and isinstance(sides, tuple) and (question := compose(attempt, draft)):
        comparison = Comparison(question, sides)
        comparison.start()
        st.session_state["comparison"] = comparison
    if attempt:
        st.rerun()


def look(client: ServiceClient) -> Sides | Side | ServiceError:
    """Return the two sides that answer, or the only one, or why that is unknown."""
    clients = st.cache_resource(show_spinner=False, on_release=ServiceClient.close)(connect_to_slot)

    def connect(slot: str) -> ServiceClient | None:
        socket = slot_socket(slot)
        return clients(socket) if socket else None

    try:
        return find_sides(client, connect)
    except ServiceError as error:
        return error


def show_sides(client: ServiceClient, drawn: Sides | Side | ServiceError, texts: Texts, words: CompareTexts) -> None:
    """Show which slots answer; `drawn`: those for which the rest of the page was drawn."""
    sides = look(client)
    if isinstance(sides, ServiceError):
        if not isinstance(drawn, ServiceError):
            st.rerun()
        if sides.fault is Fault.TIMEOUT:  # as in a swap, while no version is loaded
            st.caption(texts.no_response)
        else:
            st.warning(texts.faults[sides.fault][0], icon=":material/cloud_off:")
        return
    if sides != drawn:
        st.rerun()
    if isinstance(sides, Side):
        only = sides.slot
        st.info(
            f"{words.one_slot.format(version=escape(only.version), slot=only.slot)}  \n{words.one_slot_hint}",
            icon=":material/info:",
        )
        return
    live, other = sides
    st.caption(
        words.both.format(
            live=escape(live.slot.version),
            live_slot=live.slot.slot,
            other=escape(other.slot.version),
            other_slot=other.slot.slot,
            role=words.sides[other.role],
        )
    )


def show_comparison(comparison: Comparison, votes: VoteStore, texts: Texts, words: CompareTexts) -> None:
    """Show a question and both replies, and what can be done with them."""
    with st.chat_message("user", avatar=":material/person:"):
        show_question(comparison.question)
    marked = None
    if comparison.complete and all(reply.text for reply in comparison.replies):
        marked = show_differences(comparison, words)
    for number, (column, reply) in enumerate(zip(st.columns(2, gap="medium"), comparison.replies, strict=True)):
        with column:
            side = comparison.sides[number]
            show_head(reply, side.slot, words.sides[side.role])
            if reply.complete:
                with st.container():  # a fragment has one too
                    show_ended(reply, texts, words, marked[number] if marked else None)
            else:
                st.fragment(show_partial, run_every=REPLY_INTERVAL)(reply, texts)
    if not comparison.complete:
        if st.button(words.stop, key="stop-both", icon=":material/stop_circle:"):
            comparison.stop()
            st.rerun()
        return
    show_vote(comparison, votes, words)


def show_head(reply: Reply, asked: LiveSlot, side: str) -> None:
    """Show the version and slot of an answer, until it is known those that were asked."""
    live = reply.live if reply.live and reply.live.version else asked
    st.markdown(f"#### {escape(live.version)} :{COLOURS.get(live.slot, 'gray')}-badge[{live.slot} · {side}]")


def show_ended(reply: Reply, texts: Texts, words: CompareTexts, marked: str | None) -> None:
    """Show a reply that has ended, with its times; `marked`: its text as HTML."""
    show_reasoning(reply, texts, ended=True)
    if marked is not None:
        st.html(f'<div class="glm-answer">{marked}</div>')
    elif reply.text:
        st.markdown(reply.text)
    elif reply.error is None:
        st.markdown(f":gray[{texts.no_answer_begun if reply.reasoning or reply.stopped else texts.empty}]")
    notes = [texts.stopped] * reply.stopped + [texts.length_limit] * (reply.finish_reason == "length")
    notes += timing(reply, chat_texts(texts))
    if reply.total_time is not None:
        notes.append(words.total.format(seconds=f"{reply.total_time:.2f}"))
    if notes:
        st.caption(" · ".join(notes))
    if reply.error:
        lines = [f"**{texts.faults[reply.error.fault][0]}**"]
        if reply.error.detail:
            lines.append(texts.service_message.format(detail=escape(reply.error.detail)))
        st.warning("  \n".join(lines), icon=":material/error:")


def show_differences(comparison: Comparison, words: CompareTexts) -> tuple[str, str] | None:
    """Show the switch and how many words differ; return both texts with the marks if they are to be shown."""
    first, second = (reply.text for reply in comparison.replies)
    found = st.cache_data(show_spinner=False, max_entries=16)(mark_differences)(first, second)
    if found is None:
        st.caption(words.too_long)
        return None
    *marked, count = found
    if not count:
        st.caption(words.no_difference)
        return None
    if not st.toggle(words.mark, value=True, key="mark"):
        return None
    st.caption(words.differing.format(count=count))
    return marked[0], marked[1]


def show_vote(comparison: Comparison, votes: VoteStore, words: CompareTexts) -> None:
    """Show the choice between two whole answers of two slots, and keep it."""
    versions = comparison.versions
    if versions is None:
        slots = {reply.live.slot for reply in comparison.replies if reply.live}
        if len(slots) == 1 and all(reply.sendable for reply in comparison.replies):
            st.info(words.same_slot.format(slot=slots.pop()))
        return
    first, second = versions
    labels = {
        "first": words.better.format(version=first),
        "second": words.better.format(version=second),
        "equal": words.equal,
        "neither": words.neither,
    }
    key = f"vote-{comparison.id}"

    def keep() -> None:
        choice = st.session_state[key]
        if choice is None:
            return
        try:
            votes.vote(browser_id(st.context.cookies) or "", comparison.id, versions, choice)
        except sqlite3.Error:
            logger.exception("a vote cannot be kept")
            st.error(words.vote_failed)
        else:
            comparison.choice = choice

    st.segmented_control(
        words.vote, CHOICES, default=comparison.choice, key=key, format_func=labels.__getitem__, on_change=keep
    )
    if comparison.choice:
        st.caption(f":material/check: {words.voted}")


def show_tallies(votes: VoteStore, words: CompareTexts) -> None:
    """Show the votes on each pair of versions."""
    try:
        tallies = votes.tallies()
    except sqlite3.Error:
        logger.warning("the votes cannot be read", exc_info=True)
        return
    if not tallies:
        return
    st.markdown(f"#### {words.tally}")
    rows = [
        [f"{one.one} / {one.other}", *map(str, (one.better_one, one.better_other, one.equal, one.neither))]
        for one in tallies
    ]
    st.html(table(words.tally, words.columns, rows))
    st.caption(words.tally_hint)
