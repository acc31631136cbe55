"""Mixing (data) and Mixer, which makes mixed batches: partner and ratio hang on seed, sample and view alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from decoct.data.base import Split
from decoct.data.hashing import keyed, uniform
from decoct.errors import RecipeError
from decoct.outputs import Batch
from decoct.spec import Spec
from decoct.tasks.base import Task
from decoct.tasks.inputs.base import STUDENT

Look = Callable[[Split, np.ndarray, np.ndarray | None], np.ndarray]
"""uint64 `[B]` of (split, indices, seeds): what samples look like."""


class Mixing(Spec):
    """Describes how two images become one view; their targets are mixed by the share of each in it.

    `alpha`: the share of a sample in its own view is drawn from Beta(alpha, alpha); `probability` that a sample is
    mixed at all. Both models see the same view. Labelled samples are mixed with labelled ones, so that no target is
    lost and none leaks; unlabelled samples with any, and they stay unlabelled.
    """

    alpha: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    probability: float = Field(default=1.0, gt=0, le=1)

    between: ClassVar[bool] = False
    """Whether pixels fall between whole numbers, so that the view is float32; else it stays uint8."""

    @abstractmethod
    def blend(self, own: Tensor, other: Tensor, shares: np.ndarray, hashes: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Mixed images `[B, C, H, W]`, and the share of each sample that is really in its view, float64 `[B]`.

        `hashes` uint64 `[B]`: where further random numbers come from.
        """

    def shares(self, hashes: np.ndarray) -> np.ndarray:
        """float64 `[B]`, from uint64 hashes: 1 where a sample is not mixed, else drawn from Beta(alpha, alpha)."""
        from scipy.special import betaincinv

        drawn = betaincinv(self.alpha, self.alpha, uniform(keyed("share", hashes)))
        mixed = uniform(keyed("mixed", hashes)) < self.probability
        return np.where(mixed, drawn, 1.0)


class Mixer:
    """Collates mixed batches of one split.

    Sample i of view k gets its partner and its share from H(seed, k, key of i): the partner is drawn from all samples
    of the split (of the labelled ones for a labelled sample), in its own view k, so that neither order, batch mates
    nor workers matter. Equal samples get equal partners.
    """

    def __init__(
        self, task: Task, mixing: Mixing, split: Split, seed: int, *, only: Literal["all", "labelled"] = "all"
    ) -> None:
        inputs = task.inputs(STUDENT)
        if not (inputs.mixes_views and task.answer.mixes_targets) or inputs.raw:
            raise RecipeError(
                f"mix is {mixing.use}, which mixes images that decoct reads and their classes; task {task.use!r} has "
                "others: leave mix out"
            )
        self._task, self._mixing, self._seed = task, mixing, seed
        self._name = mixing.digest()
        order = np.argsort(split.keys, kind="stable")
        self._known = np.ones(len(split), bool) if split.labelled is None else split.labelled
        if "label" not in split.columns:
            self._known = np.zeros(len(split), bool)
        self._labelled = order[self._known[order]]
        self._all = order if only == "all" else self._labelled

    def collate(self, split: Split, indices: np.ndarray, *, seeds: np.ndarray | None = None, view: int = 0) -> Batch:
        """As the task's `collate`, mixed; the target becomes float32 `[B, C]`, NaN where it is not known."""
        hashes = keyed(self._seed, "mix", view, split.keys[indices])
        partners = self._partners(indices, hashes)
        theirs = self._partner_seeds(split, partners, seeds, view)
        own = self._task.collate(split, indices, seeds=seeds, view=view)
        other = self._task.collate(split, partners, seeds=theirs, view=view)
        image, partner = own.side("student"), other.side("student")
        assert all(each is image for each in own.inputs.values()), "both sides see one image"
        mixed, shares = self._mixing.blend(image, partner, self._mixing.shares(hashes), hashes)
        seen = self._seen(hashes, own.seen, other.seen)
        inputs = dict.fromkeys(own.inputs, mixed)
        return replace(own, inputs=inputs, target=self._target(own, other, shares), seen=seen)

    def seen(self, split: Split, indices: np.ndarray, seeds: np.ndarray | None, view: Any, look: Look) -> np.ndarray:
        """uint64 `[B]`: what `collate` says of how its batch looks; `look` says it of samples that are not mixed."""
        hashes = keyed(self._seed, "mix", view, split.keys[indices])
        partners = self._partners(indices, hashes)
        theirs = self._partner_seeds(split, partners, seeds, view)
        return self._seen(hashes, look(split, indices, seeds), look(split, partners, theirs))

    def _seen(self, hashes: np.ndarray, own: np.ndarray, other: np.ndarray) -> np.ndarray:
        return keyed("mixed", self._name, hashes, own, other)

    def _partner_seeds(
        self, split: Split, partners: np.ndarray, seeds: np.ndarray | None, view: Any
    ) -> np.ndarray | None:
        return None if seeds is None else keyed(self._seed, "view", view, split.keys[partners])

    def _partners(self, indices: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        drawn = keyed("partner", hashes)
        found = self._all[(drawn % np.uint64(len(self._all))).astype(np.int64)]
        if len(self._labelled):
            known = self._labelled[(drawn % np.uint64(len(self._labelled))).astype(np.int64)]
            found = np.where(self._known[indices], known, found)
        return found

    def _target(self, own: Batch, other: Batch, shares: np.ndarray) -> Any:
        return self._task.answer.mixed(own, other, torch.from_numpy(shares.astype(np.float32)))


def column(values: np.ndarray, like: Tensor) -> Tensor:
    """float32 `[B, 1, 1, 1]` from `[B]`."""
    return torch.from_numpy(values.astype(np.float32)).view(-1, *(1 for _ in like.shape[1:]))
