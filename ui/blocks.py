"""Parts of the rollout page as HTML: the cards of the slots, the phases, tables. Everything from outside is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, tzinfo
from html import escape

from ui.figures import bytes_text, clock, duration, moment, percent
from ui.rollout_texts import RolloutTexts
from ui.status import Document

__all__ = ["STYLE", "phase_list", "slot_cards", "table"]

STYLE = """
<style>
  .stMainBlockContainer { max-width: 72rem; padding-top: 3.5rem; }
  .stStatusWidget, [data-testid="stStatusWidget"] { display: none; }
  [data-stale="true"] { opacity: 1 !important; transition: none !important; }
  .glm-cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); gap: 1rem; }
  .glm-card { border: 1px solid #8884; border-left: .35rem solid #888; border-radius: .5rem; padding: .8rem 1rem; }
  .glm-card.blue { border-left-color: #3b8fd9; } .glm-card.green { border-left-color: #3aa76d; }
  .glm-card h3 { display: flex; flex-wrap: wrap; gap: .2rem .6rem; align-items: baseline; font-size: 1.25rem; margin: 0;
    padding: 0 0 .5rem; overflow-wrap: anywhere; }
  .glm-card h3 span, .glm-phases em { font-size: .8rem; font-weight: 400; font-style: normal; opacity: .75; }
  .glm-card h3 strong { font-size: .75rem; padding: .1rem .5rem; border-radius: 1rem; background: #3aa76d33; }
  .glm-card dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .5rem 1rem;
    margin: 0 !important; padding: 0 !important; }
  .glm-card dt { font-size: .8rem; font-weight: 400; opacity: .75; }
  .glm-card dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
  .glm-bar { height: .35rem; border-radius: .2rem; background: #8883; overflow: hidden; margin-top: .25rem; }
  .glm-bar i { display: block; height: 100%; background: #3b8fd9; }
  .green .glm-bar i { background: #3aa76d; }
  .glm-phases { list-style: none; margin: 0 !important; padding: 0 !important; }
  .glm-phases li { display: grid; grid-template-columns: 1.2rem minmax(6rem, 10rem) 5rem 1fr; gap: 0 .6rem; margin: 0;
    padding: .2rem 0; font-variant-numeric: tabular-nums; }
  @media (max-width: 40rem) { .glm-phases li { grid-template-columns: 1.2rem 6.5rem 4.5rem 1fr; } }
  .glm-phases .done i { color: #3aa76d; } .glm-phases .failed { color: #e0554f; }
  .glm-phases i { font-style: normal; } .glm-phases .running { font-weight: 600; }
  .glm-phases .to-come { opacity: .65; }
  .glm-table { overflow-x: auto; } .glm-table table { border-collapse: collapse; font-size: .875rem; width: 100%; }
  .glm-table :is(th, td) { padding: .3rem .6rem; border-bottom: 1px solid #8884; text-align: left;
    white-space: nowrap; }
  .glm-table th { font-weight: 400; opacity: .75; } .glm-table td { font-variant-numeric: tabular-nums; }
</style>
"""

_MARKS = {"done": "✓", "running": "●", "failed": "✗", "to come": "·"}


def slot_cards(document: Document, texts: RolloutTexts) -> str:
    """Return the cards of the slots; `document` is that of `glmctl status --json`.

    They are one element: the browser draws one element after another, and shares of two moments do not sum to 100 %.
    """
    live = document["live"]
    cards = (_slot_card(name, slot, texts, is_live=name == live) for name, slot in document["slots"].items())
    return f'<div class="glm-cards">{"".join(cards)}</div>'


def phase_list(phases: Iterable[Document], texts: RolloutTexts, where: tzinfo, now: datetime) -> str:
    """Return the phases with the time at which each began and its duration; the running one has them until `now`."""
    items = []
    for one in phases:
        state, name = one["state"], texts.word(one["phase"])
        share = "" if one["share"] is None else f" {one['share']:g} %"
        items.append(
            f'<li class="{state.replace(" ", "-")}"><i aria-label="{escape(texts.word(state))}">{_MARKS[state]}</i>'
            f"<span>{escape(name)}{share}</span><span>{clock(one['at'], where)}</span>"
            f"<span>{_span(one, texts, now)}</span></li>"
        )
    return f'<ol class="glm-phases" aria-label="{texts.phases}">{"".join(items)}</ol>'


def table(label: str, titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table, which scrolls sideways where it does not fit; `label` is its name for screen readers."""
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    scrolled = f'<div class="glm-table" tabindex="0" role="region" aria-label="{escape(label)}">'
    return f"{scrolled}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _slot_card(name: str, slot: Document, texts: RolloutTexts, *, is_live: bool) -> str:
    detail = (slot["status_text"] or "").partition(": ")[2] if slot["state"] in {"starting", "stopping"} else ""
    state = " - ".join(filter(None, (texts.word(slot["state"]), detail)))
    generation = f" #{slot['generation']}" if slot["generation"] else ""
    live = f"<strong>{texts.live}</strong>" if is_live else ""
    mirrored = f" {texts.mirrored.format(share=format(slot['mirror'], 'g'))}" if slot["mirror"] else ""
    rate = slot["requests_per_s"]
    facts = {
        texts.share: f"{slot['share']:g} %{mirrored}",
        texts.in_flight: str(slot["in_flight"]),
        texts.requests: "-" if rate is None else f"{rate:.1f}",
        texts.p95: duration(slot["p95"]),
        texts.ttft: duration(slot["ttft_p95"]),
        texts.errors: percent(slot.get("errors")),
        texts.gate: texts.word(slot["gate"]),
        texts.connections: str(slot["connections"]),
        texts.workers: str(slot["workers"]),
        texts.memory: bytes_text(slot["memory"]),
        texts.device: ", ".join(dict.fromkeys(one["device"] for one in slot["devices"])) or "-",
    }
    rows = "".join(
        f"<div><dt>{title}</dt><dd>{escape(value)}{_bar(slot['share']) if title == texts.share else ''}</dd></div>"
        for title, value in facts.items()
    )
    return (
        f'<section class="glm-card {escape(name)}" aria-label="{escape(name)}">'
        f"<h3>{escape(slot['version'] or texts.no_release)}{live}"
        f"<span>{escape(name)}{generation}</span><span>{escape(state)}</span></h3><dl>{rows}</dl></section>"
    )


def _span(one: Document, texts: RolloutTexts, now: datetime) -> str:
    """Return the duration of a phase, with a bar while it is running towards a planned end."""
    planned = "" if one["planned"] is None else texts.planned.format(seconds=f"{one['planned']:g}")
    if one["state"] == "to come":
        return f"<em>{planned}</em>"
    began = moment(one["at"])
    if one["state"] != "running" or began is None:
        return duration(one["seconds"])
    if one["phase"] == "canary" and one["planned"] is None:
        planned = texts.until_promoted
    seconds = max(0.0, (now - began).total_seconds())
    bar = _bar(100 * min(1.0, seconds / one["planned"])) if one["planned"] else ""
    return f"{duration(seconds)} <em>{planned}</em>{bar}"


def _bar(percentage: float) -> str:
    return f'<div class="glm-bar"><i style="width: {percentage:.0f}%"></i></div>'
