"""Next tokens: at each position the one that follows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from decoct.data.base import Dataset, Split
from decoct.errors import DataError, Diverged, RecipeError
from decoct.models.interface import Port
from decoct.outputs import Batch, Dense, Factored, Needs, Outputs
from decoct.tasks.answers.base import IGNORED, Answer, Over, Scores, Tally, Traces, in_loss_type
from decoct.tasks.inputs.base import Inputs

ROWS = 512
"""Tokens whose logits are written out at once when scores are taken."""


class NextTokens(Answer):
    """At each position a distribution over the token that follows; logits `[B, L, V]`, target int64 `[B, L]`, -100
    where no token counts. Perplexity is the main metric: exp of the mean cross-entropy of a token.

    `tokens`: how many there are, from the tokenizer. What a model says may stay factored: hidden states and a head.
    """

    use: ClassVar[str] = "next_tokens"
    item: ClassVar[str] = "token"
    target_columns: ClassVar[tuple[str, ...]] = ("next",)
    tokens: int | None = Field(default=None, ge=2, le=1 << 24)

    @property
    def metric(self) -> tuple[str, Literal["max", "min"]]:
        return "perplexity", "min"

    @property
    def metrics(self) -> Mapping[str, Literal["max", "min"]]:
        return {**super().metrics, "cross_entropy": "min", "accuracy": "max"}

    def resolve_answer(self, data: Dataset, inputs: Inputs) -> dict[str, Any]:
        return {"tokens": inputs.vocabulary} if self.tokens is None and not inputs.raw else {}

    def gives(self, inputs: Inputs) -> dict[str, Port]:
        if self.tokens is None:
            raise RecipeError("task.tokens: not known; say how many tokens the vocabulary has")
        return {"logits": Port(kind="logits", shape=(None, self.tokens), axes={0: "batch", 1: "length"})}

    def target(self, split: Split, indices: np.ndarray, traces: Traces) -> Tensor:
        return torch.from_numpy(split.columns["next"][indices])

    def given(self, value: Any) -> Tensor:
        target = torch.as_tensor(value)
        if target.is_floating_point() or target.ndim != 2:
            raise RecipeError(
                f"the loader's target is {target.dtype} {list(target.shape)}; expected token ids, int64 [batch, "
                "length], that follow each position"
            )
        return target.long()

    def missing(self, count: int) -> Tensor:
        raise RecipeError("a language model learns from the tokens that follow; give (input_ids, next_ids)")

    def outputs(self, raw: Outputs, batch: Batch, reader: str) -> Outputs:
        shape = _items(raw)
        if shape is not None and shape != batch.target.shape:
            raise RecipeError(
                f"the model answers at positions {list(shape)}, the target has {list(batch.target.shape)}; a causal "
                "model gives logits [batch, length, tokens]"
            )
        return replace(raw, mask=batch.target != IGNORED)

    @property
    def needs(self) -> Needs:
        return Needs()

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        assert outputs.logits is not None
        logits = in_loss_type(outputs.logits)
        total = F.cross_entropy(logits.flatten(0, 1), batch.target.flatten(), ignore_index=IGNORED, reduction="sum")
        return total / self.labelled(batch).sum().clamp(min=1)

    def kept(self, batch: Batch, over: Over, reader: str = "student") -> Tensor | None:
        return self.labelled(batch)

    def labelled(self, batch: Batch) -> Tensor:
        counted: Tensor = batch.target != IGNORED
        return counted if batch.labelled is None else counted & batch.labelled.unsqueeze(-1)

    def length(self, batch: Batch) -> int | None:
        return int(batch.target.shape[1])

    def places_in(self, split: Split) -> float:
        following = split.columns.get("next")
        return 1.0 if following is None or not len(following) else float((following != IGNORED).sum(1).mean())

    def hard_target(self, batch: Batch) -> Tensor | None:
        return torch.where(self.labelled(batch), batch.target, IGNORED)

    def zeros(self, batch: Batch) -> Outputs:
        return Outputs(Dense(torch.zeros(*batch.target.shape, self.tokens or 2)), mask=batch.target != IGNORED)

    def from_file(self, arrays: Mapping[str, Tensor], batch: Batch, reader: str) -> Outputs:
        found = Outputs(Dense(next(iter(arrays.values()))))
        return self.outputs(found, batch, reader)

    def tally(self) -> Tally:
        return TokenTally(self)


class TokenTally(Tally):
    """Perplexity, cross-entropy and accuracy by token; agreement and KL to a reference. Sums alone are kept, and the
    logits of a few hundred tokens are written out at a time."""

    def __init__(self, answer: NextTokens) -> None:
        self._answer = answer
        self._count = self._compared = 0
        self._loss = self._right = self._same = self._kl = 0.0

    def add(self, batch: Batch, raw: Outputs, reference: Outputs | None = None) -> None:
        mask = self._answer.labelled(batch)
        target = batch.target[mask]
        pieces = rows_of(raw, mask)
        others = None if reference is None else rows_of(reference, mask)
        start = 0
        for logits in pieces:
            ids = target[start : start + len(logits)].to(logits.device)
            start += len(logits)
            log_q = logits.double().log_softmax(-1)
            if not bool(log_q.isfinite().any(-1).all()):
                raise Diverged("the model returned non-finite logits")
            best = log_q.argmax(-1)
            self._count += len(ids)
            self._loss -= float(log_q.gather(-1, ids.unsqueeze(-1)).sum())
            self._right += float((best == ids).sum())
            if others is not None:
                log_p = next(others).double().log_softmax(-1)
                p = log_p.exp()
                self._compared += len(ids)
                self._same += float((log_p.argmax(-1) == best).sum())
                self._kl += float((p * (log_p - log_q)).masked_fill(p == 0, 0.0).sum())

    def scores(self) -> Scores:
        if not self._count:
            raise DataError("there is no token to score on")
        loss = self._loss / self._count
        quality = {
            "perplexity": math.exp(min(loss, 700.0)),
            "cross_entropy": loss,
            "accuracy": self._right / self._count,
        }
        fidelity = {}
        if self._compared:
            fidelity = {"agreement": self._same / self._compared, "kl": max(0.0, self._kl / self._compared)}
        return Scores(quality, fidelity)


def rows_of(raw: Outputs, mask: Tensor) -> Iterator[Tensor]:
    """Logits `[n, V]` of the positions of a mask, a few hundred at a time; RecipeError where there are none."""
    distribution = raw.distribution
    if isinstance(distribution, Factored):
        yield from distribution.rows(mask, at_once=ROWS)
    elif raw.logits is not None:
        logits = raw.logits[mask]
        for start in range(0, len(logits), ROWS):
            yield logits[start : start + ROWS]
    else:
        raise RecipeError("the predictor gives no logits")


def _items(raw: Outputs) -> torch.Size | None:
    distribution = raw.distribution
    if isinstance(distribution, Factored):
        return distribution.hidden.shape[:-1]
    return None if raw.logits is None else raw.logits.shape[:-1]
