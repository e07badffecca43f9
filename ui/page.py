"""The chat page; `streamlit run ui/page.py` shows it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import streamlit as st
from PIL import Image, ImageDraw

from ui.client import Fault, Live, Service, ServiceError, service_address
from ui.conversation import Conversation, Exchange, Question, Reply
from ui.picture import KINDS, Picture, prepare
from ui.words import LANGUAGES, Words, language_of

LOOK = "1s"  # how often the sidebar asks who is live
REFRESH = "200ms"  # how often an answer that is on its way is shown anew
CHANGES = 5  # cutovers that the sidebar remembers
PICTURE_WIDTH = 200  # pixels
LONG_THOUGHT = 600  # characters, above which a thought that grows does so in a box of THOUGHT_HEIGHT
THOUGHT_HEIGHT = 220  # pixels
HOPELESS = {Fault.PICTURE, Fault.TOO_LONG}  # the same question again would meet the same answer

# No more than the little that themes cannot say.
STYLE = """
<style>
  .stMainBlockContainer { max-width: 46rem; padding-top: 3.5rem; }
  .stSidebar h3 { padding: 0 0 .5rem; }
  .stChatMessage { padding-block: .5rem; }
  .stChatMessage pre, .stChatMessage [data-testid="stText"] { white-space: pre-wrap; overflow-wrap: anywhere; }
  .stChatMessage [data-testid="stMarkdownContainer"] { overflow-wrap: anywhere; }
  .stChatMessage [data-testid="stExpanderDetails"] { border-left: 2px solid #8886; padding-left: .75rem; opacity: .75; }
  .stStatusWidget, [data-testid="stStatusWidget"] { display: none; }
  [data-stale="true"] { opacity: 1 !important; transition: none !important; }
</style>
"""


@dataclass
class Watch:
    """Who was seen live on this page, newest last."""

    seen: list[tuple[str, Live]] = field(default_factory=list)

    def note(self, live: Live) -> None:
        """Remember a change."""
        if not self.seen or self.seen[-1][1] != live:
            self.seen = [*self.seen, (time.strftime("%H:%M:%S"), live)][-CHANGES - 1 :]


def connect(address: str) -> Service:
    """Make the one client that all visitors share, so that its connections live as long as the page."""
    return Service(address)


def emblem() -> Image.Image:
    """Draw the tab's icon, one half in each slot's colour; Streamlit's own icons would come from the internet."""
    image = Image.new("RGBA", (64, 64))
    draw = ImageDraw.Draw(image)
    draw.pieslice((4, 4, 60, 60), 90, 270, fill="#1f6fb5")
    draw.pieslice((4, 4, 60, 60), 270, 90, fill="#2f8f5b")
    return image


def main() -> None:
    """Draw the page as the session's state has it."""
    st.set_page_config(page_title="GLM", page_icon=st.cache_resource(show_spinner=False)(emblem)(), layout="centered")
    st.html(STYLE)
    service = st.cache_resource(show_spinner=False)(connect)(service_address())
    conversation: Conversation = st.session_state.setdefault("conversation", Conversation())
    watch: Watch = st.session_state.setdefault("watch", Watch())
    words = sidebar(service, conversation, watch)
    if not conversation.exchanges:
        st.markdown(f"### {words.title}")
        st.caption(words.greeting)
    for exchange in conversation.exchanges:
        show(exchange, conversation, service, words)
    asked = st.chat_input(
        words.ask, key="question", accept_file="multiple", file_type=list(KINDS), disabled=conversation.running
    )
    if asked and (asked.text.strip() or asked.files):
        put(asked.text, [(file.name, file.getvalue()) for file in asked.files], conversation, service)
        st.rerun()


def sidebar(service: Service, conversation: Conversation, watch: Watch) -> Words:
    """Draw the sidebar, and return the words of the language chosen in it."""
    with st.sidebar:
        top = st.container()
        language = st.segmented_control(
            "Language / 语言",
            list(LANGUAGES),
            key="language",
            required=True,
            default=language_of(st.context.locale),
            format_func=lambda name: LANGUAGES[name].name,
            label_visibility="collapsed",
        )
        words = LANGUAGES[language]
        with top:
            st.fragment(now, run_every=LOOK)(service, watch, words)
            if st.button(words.new_chat, key="new", icon=":material/edit_square:", width="stretch"):
                conversation.clear()
                st.rerun()
    return words


def now(service: Service, watch: Watch, words: Words) -> None:
    """Show who is live, looked up every second."""
    st.caption(words.live_now)
    try:
        live = service.live()
    except ServiceError as error:
        text = {Fault.UNREACHABLE: words.not_reachable, Fault.STRANGE: words.not_ours}.get(error.fault, words.no_answer)
        st.markdown(f":orange[:material/cloud_off:] {text}")
    else:
        watch.note(live)
        colour = "green" if live.slot == "green" else "blue"
        st.markdown(f"### {live.version} &ensp;:{colour}-badge[{words.slot.format(slot=live.slot)}]")
    changes = [
        f"{at} &ensp; {before.version} → **{after.version}**"
        for (_, before), (at, after) in zip(watch.seen, watch.seen[1:], strict=False)
    ]
    if changes:
        st.caption("  \n".join([words.seen, *reversed(changes)]))


def put(text: str, files: list[tuple[str, bytes]], conversation: Conversation, service: Service) -> None:
    """Put a question with the files attached to it."""
    pictures: list[Picture] = []
    try:
        pictures += [prepare(name, data) for name, data in files]
    except ServiceError as error:
        conversation.refuse(Question(text), error)
    else:
        conversation.ask(service, Question(text, tuple(pictures)))


def show(exchange: Exchange, conversation: Conversation, service: Service, words: Words) -> None:
    """Show one question and its answer; of the last one, how it grows and what can be done about it."""
    with st.chat_message("user", avatar=":material/person:"):
        if exchange.question.pictures:
            with st.container(horizontal=True):
                for picture in exchange.question.pictures:
                    st.image(picture.data, width=PICTURE_WIDTH)
        if exchange.question.text:
            st.text(exchange.question.text)
    last = exchange is conversation.exchanges[-1]
    with st.chat_message("assistant", avatar=":material/auto_awesome:"):
        if last and exchange.reply.running:
            st.fragment(growing, run_every=REFRESH)(exchange.reply, words)
            return
        with st.container():  # as a fragment has one: what a person unfolded stays so when the answer ends
            finished(exchange.reply, words)
        error = exchange.reply.error
        again = last and error and error.fault not in HOPELESS
        if again and st.button(words.retry, key="retry", icon=":material/refresh:"):
            conversation.retry(service)
            st.rerun()


def growing(reply: Reply, words: Words) -> None:
    """Show an answer that is on its way."""
    if not reply.running:
        st.rerun()
    text = reply.text  # once: its thread writes on
    thought(reply, words, ended=bool(text))
    if text:
        st.markdown(f"{text} ▍")
    elif not reply.thought:
        st.markdown(f":gray[{words.waiting}]")
    origin(reply, words)
    if st.button(words.stop, key="stop", icon=":material/stop_circle:", type="tertiary"):
        reply.stop()
        st.rerun()


def finished(reply: Reply, words: Words) -> None:
    """Show an answer that has ended, well or not."""
    thought(reply, words, ended=True)
    if reply.text:
        st.markdown(reply.text)
    elif reply.error is None:
        st.markdown(f":gray[{words.unbegun if reply.thought or reply.stopped else words.empty}]")
    notes = [words.stopped] * reply.stopped + [words.cut] * (reply.finish == "length")
    origin(reply, words, *notes)
    if reply.error:
        what, todo = words.faults[reply.error.fault]
        lines = [f"**{what.format(detail=reply.error.detail)}**"]
        if reply.error.detail and reply.error.fault is not Fault.PICTURE:
            lines.append(words.service_says.format(detail=reply.error.detail))
        st.warning("  \n".join([*lines, todo]), icon=":material/error:")


def thought(reply: Reply, words: Words, *, ended: bool) -> None:
    """Show what the model thinks while it does, and fold it away as soon as there is an answer."""
    if not reply.thought:
        return
    label, icon = words.thinking, "spinner"
    if ended:
        seconds, icon = reply.thinking_time, ":material/lightbulb:"
        label = words.thought.format(seconds=round(seconds)) if seconds >= 1 else words.thought_briefly
    tall = not ended and len(reply.thought) > LONG_THOUGHT
    with (
        st.expander(label, expanded=not (ended and reply.text), icon=icon, type="compact"),
        st.container(height=THOUGHT_HEIGHT if tall else "content", border=False, autoscroll=not ended),
    ):
        st.markdown(reply.thought)


def origin(reply: Reply, words: Words, *notes: str) -> None:
    """Name the version and the slot that gave an answer."""
    if reply.live and reply.live.version:
        who = words.answered_by.format(version=reply.live.version, slot=reply.live.slot)
        st.caption(" · ".join([who, *notes]))


main()
