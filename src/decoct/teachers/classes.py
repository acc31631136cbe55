"""Classes by name: a teacher that knows other classes than the student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from decoct.errors import RecipeError
from decoct.outputs import Batch, Dense, Outputs, Predictor, TopK


@dataclass(frozen=True)
class Alignment:
    """How a teacher's logits become the student's.

    `columns`: of the teacher's logits, those of classes that the student has, in the student's order; `known`: the ids
    that these classes have for the student, None where the teacher knows all of them.
    """

    columns: tuple[int, ...]
    known: tuple[int, ...] | None

    def __call__(self, predict: Predictor) -> Predictor:
        """The predictor with these columns alone: logits `[*B, len(columns)]`."""
        columns = list(self.columns)

        def aligned(batch: Batch) -> Outputs:
            outputs = predict(batch)
            if outputs.top is not None:
                return replace(outputs, distribution=self.of_top(outputs.top))
            return (
                outputs
                if outputs.logits is None
                else replace(outputs, distribution=Dense(outputs.logits[..., columns]))
            )

        return aligned

    def of_top(self, top: TopK) -> TopK:
        """The same classes under the student's ids; RecipeError where some of them are dropped.

        Dropping needs the probability of each class of the tail, which is not known.

        >>> import torch
        >>> rest = torch.tensor([[-torch.inf]])
        >>> Alignment((2, 0, 1), None).of_top(TopK(torch.tensor([[0, 2]]), torch.zeros(1, 2), rest, classes=3)).ids
        tensor([[1, 0]])
        """
        if len(self.columns) != top.classes:
            raise RecipeError(
                f"the teacher keeps only the {top.ids.shape[-1]} largest of {top.classes} probabilities, and the "
                f"student has {len(self.columns)} of its classes: what falls to the others cannot be taken out. Label "
                "with all classes, or give the student all classes of the teacher"
            )
        new = torch.empty(top.classes, dtype=torch.long, device=top.ids.device)
        new[list(self.columns)] = torch.arange(top.classes, device=new.device)
        return replace(top, ids=new[top.ids], drawn=None if top.drawn is None else new[top.drawn])


def align(teacher: Sequence[str], student: Sequence[str], role: str = "teacher") -> Alignment | None:
    """How the classes of a teacher meet those of the student, by name; None where they are the same in one order.

    Classes that the student lacks are dropped: the softmax over the others is the teacher's distribution, given that
    it is one of them. RecipeError where they share fewer than two.

    >>> align(["cat", "dog", "fox"], ["fox", "cat"])
    Alignment(columns=(2, 0), known=None)
    >>> align(["cat", "dog"], ["dog", "cow", "cat"])
    Alignment(columns=(1, 0), known=(0, 2))
    """
    if tuple(teacher) == tuple(student):
        return None
    shared = [name for name in student if name in teacher]
    if len(shared) < 2:
        raise RecipeError(
            f"{role}: it knows the classes {_listed(teacher)}, the student {_listed(student)}; they share "
            f"{', '.join(shared) or 'none'}, and two are needed. Classes are compared by name: rename those of the task"
        )
    known = None if len(shared) == len(student) else tuple(list(student).index(name) for name in shared)
    return Alignment(tuple(list(teacher).index(name) for name in shared), known)


def in_full(logits: Tensor, known: Sequence[int] | None, classes: int) -> Tensor:
    """Logits `[*B, classes]` from those of the known classes; -inf for the others.

    >>> import torch
    >>> in_full(torch.ones(1, 2), (0, 2), 3)
    tensor([[1., -inf, 1.]])
    """
    if known is None:
        return logits
    full = logits.new_full((*logits.shape[:-1], classes), float("-inf"))
    full[..., list(known)] = logits
    return full


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
