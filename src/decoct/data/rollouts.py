"""Rollouts, a source whose batches are in part written by what is trained on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from decoct.data.base import Source
from decoct.data.hashing import keyed, uniform
from decoct.errors import RecipeError
from decoct.outputs import Batch, content_of

Policy = Callable[[Batch, np.ndarray], Batch]
"""A batch of prompts, and a seed uint64 `[B]` for each of them -> what it says to them, by `batch.regenerated`."""


class Rollouts(Source):
    """The batches of `prompts`, of which a share is what `policy` says to them now.

    Batch number n (from 0, over all epochs) is the policy's own where H(seed, n) < `share` (λ of generalized knowledge
    distillation; 1: on-policy, 0: the data), else it stays as it is: always a whole batch. What is said to a prompt
    hangs on the policy as it is when the batch is drawn and on a seed H(seed, prompt's key, n) alone, not on batch
    mates or processes. `policy(batch, seeds)` gives a batch of as many samples, as `batch.regenerated` makes it, from a
    model in eval mode; it runs without gradient, and draws from the seeds alone. A batch that it wrote belongs to the
    moment, so this source is not `fixed`: nothing is drawn ahead of it.

    Agarwal et al. 2024, arXiv 2306.13649, algorithm 1.
    """

    def __init__(self, prompts: Source, policy: Policy, *, seed: int, share: float = 1.0) -> None:
        if not 0 <= share <= 1:
            raise RecipeError(f"share is {share:g}; allowed: 0 (the data alone) to 1 (the student's own alone)")
        if not prompts.fixed:
            raise RecipeError("the prompts hang on what is trained themselves; give a source of data")
        self.prompts, self._policy, self._seed, self._share = prompts, policy, seed, share
        self._drawn = 0
        self.fixed = share == 0

    @property
    def length(self) -> int | None:
        return self.prompts.length

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.prompts:
            number = self._drawn
            self._drawn += 1
            own = uniform(keyed(self._seed, "own", number))[0] < self._share
            yield self._outputs(batch, number) if own else batch

    def _outputs(self, batch: Batch, number: int) -> Batch:
        keys = content_of(next(iter(batch.inputs.values()))) if batch.keys is None else np.asarray(batch.keys)
        with torch.no_grad():
            made = self._policy(batch, keyed(self._seed, "rollout", keys, number))
        if len(made) != len(batch):
            raise RecipeError(f"the policy said {len(made)} things to {len(batch)} prompts; give one to each")
        return replace(batch, **{each.name: getattr(made, each.name) for each in fields(Batch)})

    def over(self, prompts: Source) -> Rollouts:
        """The same with other prompts, as those of one process, before any batch is drawn."""
        return Rollouts(prompts, self._policy, seed=self._seed, share=self._share)

    def state_dict(self) -> dict[str, Any]:
        return {"prompts": self.prompts.state_dict(), "drawn": self._drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.prompts.load_state_dict(state["prompts"])
        self._drawn = state["drawn"]
