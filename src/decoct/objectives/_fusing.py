"""Which terms share one sweep over a student's hidden states and head, and what they make together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from decoct.objectives._selection import Selection, masked
from decoct.objectives._sweep import Rows, swept
from decoct.outputs import Batch, Factored, Outputs
from decoct.training.clock import Clock


@dataclass(frozen=True)
class Fused:
    """`total` = Σ weight · share · term over terms that were swept together, None for no term; `means` each alone."""

    total: Tensor | None
    means: Mapping[str, Tensor]


def parts_of(
    selection: Selection, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock
) -> Rows | None:
    """A term's part of a sweep over the samples that count for it; None where it is to be asked by itself."""
    if selection.objective.refine or not isinstance(student.distribution, Factored):
        return None
    term, keep = selection.term, selection.kept(batch)
    if keep is not None and term.selection != "mask":
        return None
    return term.rows(student if keep is None else masked(student, keep), teachers, batch, clock)


def fused(
    parts: Mapping[str, Rows], weights: Mapping[str, float], shares: Mapping[str, Tensor | float] | None
) -> Fused:
    """The terms of `parts` in one sweep for each distribution of the student; by label, as weights and shares are.

    A share that takes a gradient is learned from its term's value, which a sweep does not keep: that term is left out.
    """
    groups: dict[int, dict[str, Rows]] = {}
    for label, rows in parts.items():
        share = None if shares is None else shares[label]
        if not (isinstance(share, Tensor) and share.requires_grad):
            groups.setdefault(id(rows.student), {})[label] = rows
    total: Tensor | None = None
    found: dict[str, Tensor] = {}
    for group in groups.values():
        factors = [weights[label] if shares is None else weights[label] * shares[label] for label in group]
        one, means = swept(list(group.values()), factors)
        total = one if total is None else total + one
        found |= dict(zip(group, means))
    return Fused(total, found)
