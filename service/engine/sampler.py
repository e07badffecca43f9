"""Choosing the next token of every row at once.

A row's choice depends on its own logits, settings and seed alone, never on the rows beside it: one number is drawn for
each token from the row's seed and the token's place, and finds its token in the row's cumulative distribution.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from service.engine.protocol import Sampling, TokenLogprob

if TYPE_CHECKING:
    from service.engine.sequence import Sequence as Row

__all__ = ["Choice", "Sampler"]

_NARROW = 64  # rows with a top_k up to this need no sort of the whole vocabulary, and all are cut to just this


@dataclass(frozen=True)
class Choice:
    """How one request chooses: a Sampling with nothing left open."""

    temperature: float
    top_p: float
    top_k: int  # 0: all
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    logprobs: int | None

    @classmethod
    def of(cls, asked: Sampling, default: Any) -> Choice:
        """Fill in what was not asked for from `default`, transformers' GenerationConfig of the checkpoint."""

        def pick(name: str, neutral: float) -> float:
            value = getattr(asked, name)
            value = getattr(default, name, None) if value is None else value
            return neutral if value is None else value

        sampled = asked.temperature is not None or bool(default.do_sample)
        return cls(
            temperature=pick("temperature", 1.0) if sampled else 0.0,
            top_p=pick("top_p", 1.0),
            top_k=max(0, int(pick("top_k", 0))),
            min_p=pick("min_p", 0.0),
            repetition_penalty=pick("repetition_penalty", 1.0),
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
            seed=secrets.randbits(64) if asked.seed is None else asked.seed % 2**64,
            logprobs=asked.logprobs,
        )

    @property
    def penalises(self) -> bool:
        """Whether tokens said before count."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


class Sampler:
    """Chooses tokens; `spell` gives the bytes of a token."""

    def __init__(self, spell: Callable[[int], bytes]) -> None:
        self._spell = spell
        self._counts = _Counts()

    @torch.inference_mode()
    def sample(self, logits: Any, rows: Sequence[Row]) -> tuple[list[int], list[TokenLogprob | None]]:
        """Choose a token for each row of `logits` (rows, vocabulary), and report the probabilities that were asked."""
        raw = logits.float()
        scores = self._constrain(self._counts.penalise(raw, rows), rows)
        chosen = scores.argmax(-1)
        kinds: dict[Callable[..., Any], list[int]] = {}
        for index, row in enumerate(rows):
            if row.choice.temperature > 0:
                kinds.setdefault(_kind(row.choice), []).append(index)
        for draw, indices in kinds.items():
            chosen[indices] = draw(scores[indices], [rows[index] for index in indices])
        self._counts.add(rows, chosen)
        return chosen.tolist(), self._report(raw, chosen, rows)

    def forget(self, row: Row) -> None:
        """Drop what is remembered of a request that ended."""
        self._counts.forget(row)

    def _constrain(self, scores: Any, rows: Sequence[Row]) -> Any:
        bound = [index for index, row in enumerate(rows) if row.constraint and row.constraint.active]
        if bound:
            allowed = torch.stack([rows[index].constraint.allowed(scores.shape[1]) for index in bound])  # type: ignore[union-attr]
            scores = scores.clone()
            scores[bound] = scores[bound].masked_fill(~allowed.to(scores.device), -torch.inf)
        return scores

    def _report(self, raw: Any, chosen: Any, rows: Sequence[Row]) -> list[TokenLogprob | None]:
        reports: list[TokenLogprob | None] = [None] * len(rows)
        asked = [index for index, row in enumerate(rows) if row.choice.logprobs is not None]
        if not asked:
            return reports
        logprobs = raw[asked].log_softmax(-1)
        tokens = chosen[asked].tolist()
        own = logprobs.gather(1, chosen[asked][:, None])[:, 0].tolist()
        values, ids = logprobs.topk(max(1, *(rows[index].choice.logprobs or 0 for index in asked), 1))
        for place, (index, likely) in enumerate(
            zip(asked, zip(values.tolist(), ids.tolist(), strict=True), strict=True)
        ):
            top = [(self._spell(token), value) for value, token in zip(*likely, strict=True)]
            count = rows[index].choice.logprobs or 0
            reports[index] = TokenLogprob(self._spell(tokens[place]), own[place], tuple(top[:count]))
        return reports


class _Counts:
    """What rows with penalties have said, (requests, vocabulary) on the device; grows with the requests that ask."""

    def __init__(self) -> None:
        self._place: dict[Row, int] = {}
        self._said: Any = None  # how often in the answer
        self._seen: Any = None  # whether in prompt or answer

    def penalise(self, logits: Any, rows: Sequence[Row]) -> Any:
        """Lower the logits (rows, vocabulary) of what was said: repetition as transformers has it, else as OpenAI."""
        bound = [index for index, row in enumerate(rows) if row.choice.penalises]
        if not bound:
            return logits
        places = [self._find(rows[index], logits) for index in bound]
        said, seen, scores = self._said[places], self._seen[places], logits[bound]

        def column(name: str) -> Any:
            return torch.tensor([getattr(rows[index].choice, name) for index in bound], device=logits.device)[:, None]

        repetition = column("repetition_penalty")
        scores = torch.where(seen, torch.where(scores < 0, scores * repetition, scores / repetition), scores)
        scores -= said * column("frequency_penalty") + (said > 0) * column("presence_penalty")
        logits = logits.clone()
        logits[bound] = scores
        return logits

    def add(self, rows: Sequence[Row], chosen: Any) -> None:
        """Count the tokens just chosen."""
        bound = [index for index, row in enumerate(rows) if row in self._place]
        if bound:
            places = torch.tensor([self._place[rows[index]] for index in bound], device=chosen.device)
            self._said.index_put_((places, chosen[bound]), self._said.new_ones(len(bound)), accumulate=True)
            self._seen[places, chosen[bound]] = True

    def forget(self, row: Row) -> None:
        """Let another request have its place."""
        self._place.pop(row, None)

    def _find(self, row: Row, logits: Any) -> int:
        if row not in self._place:
            place = next(place for place in range(len(self._place) + 1) if place not in self._place.values())
            if self._said is None or place >= len(self._said):
                self._grow(logits)
            self._said[place] = 0
            self._seen[place] = False
            self._seen[place, row.prompt.ids.to(logits.device)] = True
            self._place[row] = place
        return self._place[row]

    def _grow(self, logits: Any) -> None:
        room = logits.new_zeros(8, logits.shape[1])
        self._said = room if self._said is None else torch.cat([self._said, room])
        self._seen = room.bool() if self._seen is None else torch.cat([self._seen, room.bool()])


def _kind(choice: Choice) -> Callable[..., Any]:
    """Which way of drawing a row's own settings need. It must not depend on other rows, nor on chance."""
    if 0 < choice.top_k <= _NARROW:
        return _draw_narrow
    return _draw_sorted if choice.top_k or choice.top_p < 1 else _draw_plain


def _draw_narrow(scores: Any, rows: Sequence[Row]) -> Any:
    values, ids = scores.topk(min(_NARROW, scores.shape[1]))
    return ids.gather(1, _draw(values, rows, ranked=True))[:, 0]


def _draw_sorted(scores: Any, rows: Sequence[Row]) -> Any:
    values, ids = scores.sort(descending=True, stable=True)
    return ids.gather(1, _draw(values, rows, ranked=True))[:, 0]


def _draw_plain(scores: Any, rows: Sequence[Row]) -> Any:
    return _draw(scores, rows, ranked=False)[:, 0]


def _draw(values: Any, rows: Sequence[Row], *, ranked: bool) -> Any:
    """Draw a column of `values` (rows, columns) for each row; `ranked` ones fall from left to right."""

    def column(numbers: list[float]) -> Any:
        return torch.tensor(numbers, dtype=torch.float32, device=values.device)[:, None]

    values = values / column([max(row.choice.temperature, 1e-5) for row in rows])
    if ranked:
        ranks = torch.arange(values.shape[1], device=values.device)
        most = column([row.choice.top_k or values.shape[1] for row in rows])
        values = values.masked_fill(ranks >= most, -torch.inf)
    shares = values.softmax(-1)
    if ranked:  # what is behind the share top_p goes, the likeliest never
        before = shares.cumsum(-1) - shares
        shares = shares * (before < column([row.choice.top_p for row in rows]))
    floor = column([row.choice.min_p for row in rows]) * shares.max(-1, keepdim=True).values
    sums = (shares * (shares >= floor)).double().cumsum(-1)
    dice = torch.from_numpy(_dice(rows)).to(values.device)[:, None] * sums[:, -1:]
    return torch.searchsorted(sums, dice, right=True).clamp(max=values.shape[1] - 1)


def _dice(rows: Sequence[Row]) -> Any:
    """One number in [0, 1) for each row, of its seed and its place alone: the finaliser of SplitMix64."""
    seeds = np.array([row.choice.seed for row in rows], dtype=np.uint64)
    steps = np.array([len(row.tokens) + 1 for row in rows], dtype=np.uint64)
    with np.errstate(over="ignore"):
        mixed = seeds + steps * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
