"""Sampling of the next token of all sequences at once.

The result for a sequence depends on its own logits, parameters and seed only, never on the rest of the batch: one
uniform number is derived from the seed and the index of the token, and looked up in the cumulative distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.protocol import TokenLogprob
from service.engine.sampling_params import SamplingParams
from service.engine.sequence import Sequence
from service.engine.transfer import upload

__all__ = ["Sampler"]

_TOPK_LIMIT = 64  # up to this top_k, a topk of exactly this size replaces the sort of the whole vocabulary

Draw = Callable[[Tensor, list[Sequence]], Tensor]


class Sampler:
    """Chooses tokens; `token_bytes` maps a token id to its bytes."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._counts = _TokenCounts()

    @torch.inference_mode()
    def sample(self, logits: Tensor, sequences: list[Sequence]) -> tuple[list[int], list[TokenLogprob | None]]:
        """Return a token for each row of `logits` (sequences, vocabulary), and its log probabilities if requested."""
        raw = logits.float()
        chosen = self.choose(raw, sequences)
        return chosen.tolist(), self._logprobs(raw, chosen, sequences)

    @torch.inference_mode()
    def choose(self, logits: Tensor, sequences: list[Sequence]) -> Tensor:
        """Return a token for each row of `logits`, on the device: long (sequences,).

        The host does not wait for the device, unless a sequence has penalties or a constraint.
        """
        raw = logits.float()
        scores = self._constrain(_biased(self._counts.penalise(raw, sequences), sequences), sequences)
        chosen = scores.argmax(-1)
        groups: dict[Draw, list[int]] = {}
        for index, sequence in enumerate(sequences):
            if sequence.params.temperature > 0:
                groups.setdefault(_select_draw(sequence.params), []).append(index)
        for draw, indices in groups.items():
            places = upload(indices, scores.device, torch.long)
            chosen[places] = draw(scores[places], [sequences[index] for index in indices])
        return chosen

    def _constrain(self, scores: Tensor, sequences: list[Sequence]) -> Tensor:
        """Set the scores of tokens that a grammar forbids to -inf."""
        active = {
            index: sequence.constraint
            for index, sequence in enumerate(sequences)
            if sequence.constraint and sequence.constraint.active
        }
        if active:
            indices = list(active)
            allowed = torch.stack([constraint.allowed(scores.shape[1]) for constraint in active.values()])
            scores = scores.clone()
            scores[indices] = scores[indices].masked_fill(~allowed.to(scores.device), -torch.inf)
        return scores

    def _logprobs(self, raw: Tensor, chosen: Tensor, sequences: list[Sequence]) -> list[TokenLogprob | None]:
        result: list[TokenLogprob | None] = [None] * len(sequences)
        requested = [index for index, sequence in enumerate(sequences) if sequence.params.logprobs is not None]
        if not requested:
            return result
        logprobs = raw[requested].log_softmax(-1)
        tokens = chosen[requested].tolist()
        own = logprobs.gather(1, chosen[requested][:, None])[:, 0].tolist()
        values, ids = logprobs.topk(max(1, *(sequences[index].params.logprobs or 0 for index in requested), 1))
        for place, (index, candidates) in enumerate(
            zip(requested, zip(values.tolist(), ids.tolist(), strict=True), strict=True)
        ):
            top = [(self._token_bytes(token), value) for value, token in zip(*candidates, strict=True)]
            count = sequences[index].params.logprobs or 0
            result[index] = TokenLogprob(self._token_bytes(tokens[place]), own[place], tuple(top[:count]))
        return result


@dataclass
class _CountedRow:
    """A row of the token counts, and how many tokens of its sequence's output it contains."""

    index: int
    counted: int = 0


class _TokenCounts:
    """Token counts of the sequences that have penalties: (rows, vocabulary) on the device, 5 bytes a token.

    A row belongs to a sequence of the present step. One that is missing in a step has ended or was preempted: its row
    is used again, and if it returns, it is counted anew. Hence nothing has to be freed, there are never more rows than
    sequences in one step (rounded up to 8), and a failed step can be run again.
    """

    def __init__(self) -> None:
        self._rows: dict[int, _CountedRow] = {}  # by the sequence's number: a reference would keep its image features
        self._output: Tensor | None = None  # occurrences in the output
        self._prompt: Tensor | None = None  # bool: occurs in the prompt

    def penalise(self, logits: Tensor, sequences: list[Sequence]) -> Tensor:
        """Return logits (sequences, vocabulary) lowered by the penalties.

        The repetition penalty follows transformers, presence and frequency penalties follow OpenAI.
        """
        affected = [index for index, sequence in enumerate(sequences) if sequence.params.has_penalties]
        present = {sequences[index].number for index in affected}
        self._rows = {number: row for number, row in self._rows.items() if number in present}
        if not affected:
            return logits
        output, in_prompt = self._count([sequences[index] for index in affected], logits)
        scores = logits[affected]

        def column(name: str) -> Tensor:
            values = [getattr(sequences[index].params, name) for index in affected]
            return torch.tensor(values, device=logits.device)[:, None]

        repetition, seen = column("repetition_penalty"), in_prompt | (output > 0)
        scores = torch.where(seen, torch.where(scores < 0, scores * repetition, scores / repetition), scores)
        scores -= output * column("frequency_penalty") + (output > 0) * column("presence_penalty")
        logits = logits.clone()
        logits[affected] = scores
        return logits

    def _count(self, sequences: list[Sequence], logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the counts of these sequences' outputs, and which tokens their prompts contain."""
        for sequence in sequences:
            if sequence.number not in self._rows:
                self._insert(sequence, logits)
        assert self._output is not None
        assert self._prompt is not None
        rows = [self._rows[sequence.number] for sequence in sequences]
        paired = list(zip(rows, sequences, strict=True))
        new = [(row.index, token) for row, sequence in paired for token in sequence.tokens[row.counted :]]
        if new:
            indices, tokens = torch.tensor(new, device=logits.device).T
            self._output.index_put_((indices, tokens), self._output.new_ones(len(new)), accumulate=True)
        for row, sequence in paired:
            row.counted = len(sequence.tokens)
        present = [row.index for row in rows]
        return self._output[present], self._prompt[present]

    def _insert(self, sequence: Sequence, logits: Tensor) -> None:
        used = {row.index for row in self._rows.values()}
        index = next(index for index in range(len(used) + 1) if index not in used)
        if self._output is None or self._prompt is None:
            self._output = logits.new_zeros(8, logits.shape[1])
            self._prompt = self._output.bool()
        elif index >= len(self._output):
            more = logits.new_zeros(8, logits.shape[1])
            self._output, self._prompt = torch.cat([self._output, more]), torch.cat([self._prompt, more.bool()])
        self._output[index] = 0
        self._prompt[index] = False
        self._prompt[index, sequence.prompt.ids.to(logits.device)] = True
        self._rows[sequence.number] = _CountedRow(index)


def _biased(logits: Tensor, sequences: list[Sequence]) -> Tensor:
    """Return logits (sequences, vocabulary) with the biases that the sequences have at their next token."""
    found = [
        (index, bias) for index, sequence in enumerate(sequences) for bias in sequence.params.biases(sequence.sampled)
    ]
    if not found:
        return logits
    rows = upload(torch.cat([torch.full_like(bias.tokens, index) for index, bias in found]), logits.device, torch.long)
    tokens = upload(torch.cat([bias.tokens for _, bias in found]), logits.device, torch.long)
    values = upload(torch.cat([bias.values for _, bias in found]), logits.device, logits.dtype)
    return logits.index_put((rows, tokens), values, accumulate=True)


def _select_draw(params: SamplingParams) -> Draw:
    """Return the draw function for these parameters; for repeatability it must not depend on anything else."""
    if 0 < params.top_k <= _TOPK_LIMIT:
        return _draw_topk
    return _draw_sorted if params.top_k or params.top_p < 1 else _draw_plain


def _draw_topk(scores: Tensor, sequences: list[Sequence]) -> Tensor:
    values, ids = scores.topk(min(_TOPK_LIMIT, scores.shape[1]))
    return ids.gather(1, _draw(values, sequences, ranked=True))[:, 0]


def _draw_sorted(scores: Tensor, sequences: list[Sequence]) -> Tensor:
    values, ids = scores.sort(descending=True, stable=True)
    return ids.gather(1, _draw(values, sequences, ranked=True))[:, 0]


def _draw_plain(scores: Tensor, sequences: list[Sequence]) -> Tensor:
    return _draw(scores, sequences, ranked=False)[:, 0]


def _draw(values: Tensor, sequences: list[Sequence], *, ranked: bool) -> Tensor:
    """Draw a column of `values` (sequences, columns) for each row; `ranked` means in descending order."""

    def column(numbers: list[float]) -> Tensor:
        return upload(numbers, values.device, torch.float32)[:, None]

    values = values / column([max(sequence.params.temperature, 1e-5) for sequence in sequences])
    if ranked:
        ranks = torch.arange(values.shape[1], device=values.device)
        top_k = column([sequence.params.top_k or values.shape[1] for sequence in sequences])
        values = values.masked_fill(ranks >= top_k, -torch.inf)
    probabilities = values.softmax(-1)
    if ranked:  # drop tokens behind the share top_p; the first is always kept
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities * (before < column([sequence.params.top_p for sequence in sequences]))
    floor = column([sequence.params.min_p for sequence in sequences]) * probabilities.max(-1, keepdim=True).values
    sums = (probabilities * (probabilities >= floor)).double().cumsum(-1)
    targets = upload(torch.from_numpy(_uniform(sequences)), values.device, torch.float64)[:, None] * sums[:, -1:]
    return torch.searchsorted(sums, targets, right=True).clamp(max=values.shape[1] - 1)


def _uniform(sequences: list[Sequence]) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each sequence from its seed and token index: the finaliser of SplitMix64."""
    seeds = np.array([sequence.params.seed for sequence in sequences], dtype=np.uint64)
    steps = np.array([sequence.sampled + 1 for sequence in sequences], dtype=np.uint64)
    with np.errstate(over="ignore"):
        mixed = seeds + steps * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits: NDArray[np.uint64] = (mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53
