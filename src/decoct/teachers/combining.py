"""Several teachers: what a combination is, what it is made from, and how far teachers and student agree."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from decoct.outputs import Batch, Outputs, Predictor
from decoct.spec import Spec
from decoct.teachers.classes import in_full

COMBINED = "combined"
"""The role under which objectives hear the combination."""


@dataclass(frozen=True)
class Member:
    """One teacher of several: what it says, and the student's ids of the classes that it knows (None: all)."""

    predict: Predictor
    known: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Setting:
    """What a combination is made in: how many logits the student has, labelled samples held out, whether answers are
    distributions over classes; of numbers the `error` of a teacher on these samples."""

    outputs: int
    held_out: Callable[[], Iterable[Batch]]
    distribution: bool = True
    error: Callable[[Predictor], float] | None = None


class Combination(Spec):
    """Describes how several teachers answer as one."""

    @abstractmethod
    def join(self, members: Mapping[str, Member], setting: Setting) -> Predictor:
        """One predictor; its logits `[*B, outputs]`, -inf for a class that no member knows.

        Its `values["weights"]` `[B, members]` say how much each member counted.
        """


class Once:
    """A predictor that answers each batch once and repeats itself when it is asked again at once."""

    def __init__(self, predict: Predictor) -> None:
        self._predict = predict
        self._batch: Batch | None = None
        self._outputs: Outputs | None = None

    def __call__(self, batch: Batch) -> Outputs:
        if self._outputs is None or batch is not self._batch:
            self._batch, self._outputs = batch, self._predict(batch)
        return self._outputs


def joined_classes(members: Mapping[str, Member], outputs: int) -> tuple[int, ...] | None:
    """The ids of the classes that at least one member knows; None where these are all."""
    every = set(range(outputs))
    known = set().union(*(every if each.known is None else each.known for each in members.values()))
    return None if known == every else tuple(sorted(known))


def agreement(
    student: Tensor, teachers: Mapping[str, Tensor], known: Mapping[str, Sequence[int] | None]
) -> dict[str, Tensor]:
    """The share of items in which the highest logit is of the same class.

    `agreement.ROLE`: student and that teacher, among the classes that it knows; `agreement.teachers`: mean over the
    pairs of teachers, where there are several.

    >>> import torch
    >>> logits = torch.eye(3)
    >>> agreement(logits, {"a": logits, "b": logits.flip(0)}, {})["agreement.teachers"].item()
    0.3333333432674408
    """
    classes = student.shape[-1]
    logits_of = {role: in_full(each, known.get(role), classes) for role, each in teachers.items()}
    found = {}
    for role, logits in logits_of.items():
        own = student.masked_fill(torch.isneginf(logits), float("-inf"))
        found[f"agreement.{role}"] = _share(own, logits)
    pairs = list(combinations(logits_of.values(), 2))
    if pairs:
        found["agreement.teachers"] = torch.stack([_share(a, b) for a, b in pairs]).mean()
    return found


def _share(a: Tensor, b: Tensor) -> Tensor:
    return (a.argmax(-1) == b.argmax(-1)).float().mean()
