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

    def problem_with(self, *, distribution: bool) -> str | None:
        """What is wrong with it for answers that are distributions over classes, or numbers; None where it suits."""
        return None

    @abstractmethod
    def join(self, members: Mapping[str, Member], setting: Setting) -> Predictor:
        """One predictor; its logits `[*B, outputs]`, -inf for a class that no member knows.

        Its `values["weights"]` `[*B, members]` (`[B, members]` where they are one for all places of a sample) say how
        much each member counted.
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
    student: Tensor,
    teachers: Mapping[str, Tensor],
    known: Mapping[str, Sequence[int] | None],
    kept: Tensor | None = None,
) -> dict[str, Tensor]:
    """The share of the items that `kept` `[*B]` keeps in which the highest logit is of the same class.

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
        found[f"agreement.{role}"] = _share(own, logits, kept)
    pairs = list(combinations(logits_of.values(), 2))
    if pairs:
        found["agreement.teachers"] = torch.stack([_share(a, b, kept) for a, b in pairs]).mean()
    return found


def compared(
    student: Outputs,
    teachers: Mapping[str, Outputs],
    known: Mapping[str, Sequence[int] | None],
    kept: Tensor | None = None,
) -> dict[str, Tensor]:
    """What is logged of several teachers: `agreement`, and as `say.ROLE` how much each counted in their combination.

    Means over the items that `kept` `[*B]` keeps. Of a model that gives no logits, or gives them at other places than
    the student, nothing is said.
    """
    roles = [role for role in teachers if role != COMBINED]
    found: dict[str, Tensor] = {}
    if student.logits is not None:
        logits_of = {role: teachers[role].logits for role in roles}
        alike = {
            role: each for role, each in logits_of.items() if each is not None and each.shape[:-1] == student.places
        }
        found |= agreement(student.logits, alike, known, kept)
    if COMBINED in teachers:
        shares = mean_shares(teachers[COMBINED].values["weights"], kept)
        found |= {f"say.{role}": share for role, share in zip(roles, shares)}
    return found


def mean_shares(weights: Tensor, kept: Tensor | None = None) -> Tensor:
    """The mean weight of each member over the items that `kept` keeps, `[K]` of `[*B, K]`.

    >>> weights = torch.tensor([[[0.2, 0.8], [1.0, 0.0]]])
    >>> mean_shares(weights), mean_shares(weights, torch.tensor([[True, False]]))
    (tensor([0.6000, 0.4000]), tensor([0.2000, 0.8000]))
    """
    if kept is None:
        return weights.flatten(0, -2).mean(0)
    kept = _fitted(kept, weights.shape[:-1]).unsqueeze(-1)
    return torch.where(kept, weights, 0.0).flatten(0, -2).sum(0) / kept.sum().clamp(min=1)


def _fitted(kept: Tensor, places: torch.Size) -> Tensor:
    """Bool of the shape of `places`, from a mask by position or by sample (kept where a position of it is)."""
    if kept.ndim > len(places):
        kept = kept.flatten(len(places)).any(-1)
    return kept.reshape(kept.shape + (1,) * (len(places) - kept.ndim)).expand(places)


def _share(a: Tensor, b: Tensor, kept: Tensor | None) -> Tensor:
    same = (a.argmax(-1) == b.argmax(-1)).float()
    if kept is None:
        return same.mean()
    kept = _fitted(kept, same.shape)
    return torch.where(kept, same, 0.0).sum() / kept.sum().clamp(min=1)
