"""The page for operators, where operating is on; run by `app.py`. Without a key it only reads."""

from __future__ import annotations

import json
import shlex
import subprocess

import streamlit as st

from service.contract import operations
from service.contract.operations import STRATEGIES
from service.contract.slots import SLOTS
from ui.blocks import STYLE
from ui.figures import zone
from ui.frame import begin_page
from ui.language import choose_language
from ui.operate_texts import OPERATE_TEXTS, OperateTexts
from ui.operations_view import BEGUN, INTERVAL, outcome, recent, show_operations, show_output, shown, state_directory
from ui.operator import Attempts, OperateError, Operator, Values, WrongKeyError
from ui.status import controller

KEY = "operator key"  # of the session's state, which no browser gets
PENDING = "pending action"  # verb and values of the action that is to be confirmed
REHEARSED = "rehearsed"  # id of the dry run, and the values of its form
_TIMEOUT = 30.0  # seconds for `glmctl release list`


@st.cache_resource(show_spinner=False)
def attempts() -> Attempts:
    """Return the count of wrong keys, which all sessions share."""
    return Attempts()


@st.cache_data(show_spinner=False, ttl=5, max_entries=2)
def releases(command: tuple[str, ...]) -> list[str]:
    """Return the releases of this host, newest first; none if glmctl does not tell them."""
    try:
        done = subprocess.run(
            [*command, "release", "list", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT,
            check=True,
        )
        return [str(one["version"]) for one in json.loads(done.stdout)["releases"]][::-1]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return []


def main() -> None:
    """Draw the page: actions for who has unlocked it, and what operators did for everybody."""
    begin_page()
    with st.sidebar:
        texts = OPERATE_TEXTS[choose_language()]
    # asked before anything is drawn: nothing of the locked page stays beside the actions meanwhile
    versions = releases(tuple(controller())) if KEY in st.session_state else []
    st.html(STYLE)
    st.markdown(f"## {texts.title}")
    operator = Operator.of_host()
    if operator is None:
        st.info(texts.off)
        return
    where = zone(st.context.timezone)
    if KEY in st.session_state:
        show_operator(texts)
        show_output(texts, where)
        show_actions(operator, texts, versions)
    else:
        show_lock(operator, texts)
        show_output(texts, where)
    show_operations(texts, where)


def show_lock(operator: Operator, texts: OperateTexts) -> None:
    """Ask for a key, and keep the right one in the state of the session."""
    st.info(texts.locked, icon=":material/lock:")
    with st.form("unlock", clear_on_submit=True):
        key = st.text_input(texts.key, type="password", autocomplete="off")
        if not st.form_submit_button(texts.unlock) or not key:
            return
    address = st.context.ip_address or ""
    if not attempts().begin(address):
        st.error(texts.too_many)
        return
    try:
        name = operator.name_of(key)
    except WrongKeyError:
        st.error(texts.wrong_key)
        return
    except OperateError as error:
        attempts().forget(address)
        st.error(texts.refused.format(reason=error))
        return
    attempts().forget(address)
    st.session_state[KEY] = (name, key)
    st.rerun()


def show_operator(texts: OperateTexts) -> None:
    """Show whose key it is, and a button that forgets it."""
    name, _ = st.session_state[KEY]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(texts.unlocked.format(name=name.replace("_", r"\_")))
        if st.button(texts.lock, icon=":material/lock:"):
            del st.session_state[KEY]
            st.rerun()


def show_actions(operator: Operator, texts: OperateTexts, versions: list[str]) -> None:
    """Show all actions; each but the dry run is confirmed."""
    with st.container(border=True):
        show_deploy(operator, texts, versions)
    with st.container(border=True):
        show_rollout(texts, versions)
    with st.container(border=True):
        show_releases(texts, versions)
    if PENDING in st.session_state:
        verb, values = st.session_state[PENDING]
        st.dialog(texts.actions[verb][0], on_dismiss=forget)(confirm)(operator, texts, verb, values)


def show_deploy(operator: Operator, texts: OperateTexts, versions: list[str]) -> None:
    """Show the form of a deploy. It begins a dry run; the deploy itself is offered when that has found nothing."""
    st.markdown(f"### {texts.deploy}")
    with st.form("deploy", border=False):
        left, right = st.columns(2)
        values = {
            "version": choose_version(texts.version, versions, "deploy version", texts.version_hint, left),
            "strategy": right.selectbox(texts.strategy, STRATEGIES, help=texts.strategy_help),
        }
        for column, (field, label, default, explanation) in zip(
            st.columns(3),
            (
                ("canary", texts.canary, "", texts.canary_help),
                ("step", texts.step, "60s", texts.step_help),
                ("bake", texts.bake, "60s", texts.bake_help),
            ),
            strict=True,
        ):
            values[field] = column.text_input(label, default, help=explanation).replace(" ", "")
        if st.form_submit_button(texts.dry_run, icon=":material/fact_check:"):
            st.session_state.pop(REHEARSED, None)
            begun = begin(operator, texts, "deploy", {**values, "dry-run": "yes"})
            if begun:
                st.session_state[REHEARSED] = begun, values
    if REHEARSED in st.session_state:
        show_rehearsal(texts, *st.session_state[REHEARSED])


def show_rehearsal(texts: OperateTexts, identifier: str, values: Values) -> None:
    """Show the result of a dry run, and offer the same deploy if it found nothing against it."""
    found = next((one for one in recent() if one.id == identifier), None)
    if found is None:
        return
    text, is_running = operations.output(state_directory(), found)
    if found.code is None and is_running:
        st.fragment(await_end, run_every=INTERVAL)(identifier, texts)
        return
    if found.code != 0:
        st.error(f"{texts.impossible} {outcome(found, texts, is_running=False)[1]}")
        st.code(shown(text), language=None)
        return
    st.success(texts.possible, icon=":material/check:")
    st.code(shown(text), language=None)
    offer(texts, "deploy", values, label=f"{texts.deploy} {values['version']}")


def await_end(identifier: str, texts: OperateTexts) -> None:
    """Draw the page anew when the dry run has ended."""
    st.info(texts.rehearsing, icon=":material/hourglass_top:")
    found = next((one for one in recent() if one.id == identifier), None)
    if found is None or found.code is not None or not operations.output(state_directory(), found)[1]:
        st.rerun()


def show_rollout(texts: OperateTexts, versions: list[str]) -> None:
    """Show what can be done with a rollout under way, and the ways back."""
    st.markdown(f"### {texts.rollout}")
    with st.container(horizontal=True):
        offer(texts, "promote", {})
        offer(texts, "abort", {})
    left, right = st.columns(2)
    back = choose_version(texts.version, versions, "rollback version", texts.before, left)
    slot = right.selectbox(texts.slot, SLOTS, index=None, key="retired slot", placeholder=texts.idle)
    with left:
        offer(texts, "rollback", {"version": back})
    with right:
        offer(texts, "retire", {"slot": slot or ""})


def show_releases(texts: OperateTexts, versions: list[str]) -> None:
    """Show what can be done with releases."""
    st.markdown(f"### {texts.releases}")
    left, right = st.columns(2)
    with left:
        path = st.text_input(texts.path, key="release path", help=texts.path_help)
        name = st.text_input(texts.name, key="release name", help=texts.name_help)
        offer(texts, "release add", {"path": path.strip(), "version": name.strip()})
    with right:
        version = choose_version(texts.version, versions, "verified version", texts.version_hint, right)
        offer(texts, "release verify", {"version": version})


def choose_version(
    label: str, versions: list[str], key: str, hint: str, where: st.delta_generator.DeltaGenerator
) -> str:
    """Draw the choice of a release; another name can be typed."""
    chosen = where.selectbox(label, versions, index=None, key=key, placeholder=hint, accept_new_options=True)
    return (chosen or "").strip()


def offer(texts: OperateTexts, verb: str, values: Values, *, label: str = "") -> None:
    """Draw the button of an action, which asks for a confirmation; `label`: of the one that is meant to be next."""
    if st.button(label or texts.actions[verb][0], key=f"offer {verb}", type="primary" if label else "secondary"):
        st.session_state[PENDING] = verb, values


def forget() -> None:
    """Leave an action unconfirmed."""
    st.session_state.pop(PENDING, None)


def confirm(operator: Operator, texts: OperateTexts, verb: str, values: Values) -> None:
    """Show what would run, in a dialog, and run it."""
    st.markdown(texts.actions[verb][1])
    try:
        words = operations.command(verb, values)
    except ValueError as error:
        st.error(texts.refused.format(reason=error))
        return
    st.markdown(texts.confirm)
    st.code(shlex.join(["glmctl", *words]), language=None, wrap_lines=True)
    with st.container(horizontal=True):
        is_confirmed = st.button(texts.run, type="primary", key="run")
        is_cancelled = st.button(texts.cancel, key="cancel")
    if is_confirmed and begin(operator, texts, verb, values):
        st.session_state.pop(REHEARSED, None)
    elif not is_cancelled:
        return
    forget()
    st.rerun()


def begin(operator: Operator, texts: OperateTexts, verb: str, values: Values) -> str | None:
    """Begin an operation and show it below; returns its id, None if it was refused, which is shown."""
    if KEY not in st.session_state:
        return None
    try:
        identifier = operator.begin(st.session_state[KEY][1], verb, values)
    except WrongKeyError:  # it was taken from the file
        del st.session_state[KEY]
        st.error(texts.wrong_key)
        return None
    except OperateError as error:
        st.error(texts.refused.format(reason=error))
        return None
    st.session_state[BEGUN] = identifier
    return identifier


main()
