"""Which items of a batch a term sees, and how many these are: one truth, known before any forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives.base import Objective, Probe, Term
from decoct.outputs import Batch, Outputs, device_of, leaves
from decoct.tasks.answers.base import Answer, Over
from decoct.tasks.base import Task
from decoct.training.clock import Clock


@dataclass(frozen=True)
class Selection:
    """What counts for one term, and its count.

    `task` says which items count, for the student's `reader`. `places`: at how many places each sample is answered;
    it matters where the task does not say by position what counts, and then it must be the same for all samples.
    """

    objective: Objective
    term: Term
    task: Task
    reader: str = "student"
    places: int = 1

    @classmethod
    def of(cls, objective: Objective, term: Term, probe: Probe) -> Selection:
        """The selection of a term that was built from `probe`."""
        return cls(objective, term, probe.task, probe.reader, places_of(probe.student))

    @property
    def answer(self) -> Answer:
        """What says which items count: the task's answer, or that of the term's head."""
        head = self.objective.head
        return self.task.answer if head is None else self.task.answer.head(head)

    def kept(self, batch: Batch) -> Tensor | None:
        """Bool `[B]`, or `[*B]` over positions: what the term sees; None for all (or where it chooses itself).

        `on` narrows what the task says of the term's `over`. A term that compares whole samples (selection "index")
        sees those of which some position counts; labelled are then those of which some position is.
        """
        objective = self.objective
        if self.term.selection == "own":
            return None
        keep = self._outputs(batch, objective.over)
        if objective.on == "unlabelled":
            labels = self._labels(batch)
            none = torch.zeros(len(batch), dtype=torch.bool, device=device_of((batch.target, batch.inputs)))
            return both(keep, none if labels is None else ~labels)
        return both(keep, self._labels(batch)) if objective.on == "labelled" else keep

    def items(self, batch: Batch) -> Tensor | int:
        """How many items the term averages over."""
        keep = self.kept(batch)
        if keep is None:
            return self.term.items(batch)
        if self.term.selection == "index":
            return self.term.items(chosen(batch, keep))
        return keep.sum() if keep.ndim > 1 or self.places == 1 else keep.sum() * self.places

    def splittable(self, batch: Batch, student: Outputs) -> bool:
        """Whether the term's mean is the item-weighted mean over any split of a batch such as this one.

        It is not where a mask of the model itself decides, which only a forward pass shows.
        """
        keep = self.kept(batch)
        own = self.term.selection == "mask" and student.mask is not None and (keep is None or keep.ndim == 1)
        return self.term.splittable and not own

    def value(
        self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock, *, part: bool = False
    ) -> Tensor:
        """The term's value over what it sees; `part`: the batch is one of several in a window.

        RecipeError for a part in which samples have another number of places than they were counted by.
        """
        keep = self.kept(batch)
        if part:
            self.refuse_other_places(keep, student)
        return selected(self.term, keep, student, teachers, batch, clock)

    def refuse_other_places(self, keep: Tensor | None, student: Outputs) -> None:
        """RecipeError where samples are counted by their number of places, and here they have another number."""
        by_sample = self.term.selection == "mask" and (keep is None or keep.ndim == 1)
        if by_sample and student.mask is None and places_of(student) != self.places:
            raise RecipeError(
                f"{self.objective.label}: samples with {places_of(student)} and with {self.places} places in one "
                "window, and the task does not say which of them count; a task over positions of any number must say "
                "so by `kept`"
            )

    def _labels(self, batch: Batch) -> Tensor | None:
        found = self._outputs(batch, "labelled")
        return found if found is None or self.term.selection != "index" else rows_of(found)

    def _outputs(self, batch: Batch, over: Over) -> Tensor | None:
        label = self.objective.label
        if over == "labelled" and isinstance(batch.labelled, Mapping):
            raise RecipeError(f"{label}: labels are by head ({', '.join(batch.labelled)}); give the objective a `head`")
        keep = self.answer.kept(batch, over, self.reader)
        if keep is not None and keep.ndim > 1 and self.objective.supervised and self.term.selection == "index":
            raise RecipeError(
                f"{label}: it reads one target of each sample, and task {self.task.use!r} has one at each position; "
                "use cross_entropy or task_loss"
            )
        return keep


def places_of(outputs: Outputs) -> int:
    """At how many places each sample is answered."""
    return 1 if outputs.places is None else outputs.places[1:].numel()


def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """What two masks keep, `[B]` or `[*B]`; None keeps all.

    >>> both(torch.tensor([True, False]), torch.tensor([[True, False], [True, True]]))
    tensor([[ True, False],
            [False, False]])
    """
    if a is None or b is None:
        return b if a is None else a
    wide = max(a.ndim, b.ndim)
    a, b = (each.reshape(each.shape + (1,) * (wide - each.ndim)) for each in (a, b))
    return a & b


def rows_of(keep: Tensor) -> Tensor:
    """Bool `[B]`: the samples of which something is kept."""
    return keep if keep.ndim == 1 else keep.flatten(1).any(1)


def selected(
    term: Term, keep: Tensor | None, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock
) -> Tensor:
    """The term's value over what `keep` keeps."""
    if keep is None:
        result = term(student, teachers, batch, clock)
    elif term.selection == "mask":
        result = term(masked(student, keep), teachers, batch, clock)
    else:
        rows = rows_of(keep)
        if not rows.any():
            return zero(student)
        if keep.ndim > 1 and student.places is not None:
            student = masked(student, keep)
        places, size = rows.nonzero().squeeze(1), len(rows)
        teacher_outputs = {name: each.take(places, size) for name, each in teachers.items()}
        result = term(student.take(places, size), teacher_outputs, batch.take(places), clock)
    assert isinstance(result, Tensor)
    return result


def masked(outputs: Outputs, keep: Tensor) -> Outputs:
    """The same outputs with `keep` as their mask, where it is by position; with their mask narrowed by it, where it
    is by sample. RecipeError where the model answers at other places."""
    places = outputs.places
    assert places is not None
    keep = keep.to(device_of(outputs.distribution))
    if keep.ndim > 1:
        if keep.shape != places:
            raise RecipeError(
                f"the task says what counts of places {list(keep.shape)}, and the student answers at {list(places)}; "
                "the shapes must be equal"
            )
        return replace(outputs, mask=keep)
    keep = keep.reshape(-1, *(1 for _ in places[1:])).expand(places)
    return replace(outputs, mask=keep if outputs.mask is None else outputs.mask & keep)


def chosen(batch: Batch, keep: Tensor) -> Batch:
    """The batch of the samples of which `keep` keeps something."""
    return batch.take(rows_of(keep).nonzero().squeeze(1))


def zero(outputs: Outputs) -> Tensor:
    """0 with a gradient of 0 to what the student gave."""
    given = [
        each
        for each in leaves((outputs.distribution, outputs.features, outputs.values))
        if isinstance(each, Tensor) and each.is_floating_point()
    ]
    assert given, "the student gave neither logits, features nor values"
    return sum((each.reshape(-1)[:0].float().sum() for each in given), torch.zeros((), device=given[0].device))
