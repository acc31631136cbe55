"""Localisation distillation: box edges as distributions over bins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from decoct.errors import RecipeError, did_you_mean
from decoct.objectives._logits import Temperature, only
from decoct.objectives._numeric import full_precision, item_mean, kl_rows, log_softmax, logit_pair, shape
from decoct.objectives._shapes import ItemWeights, Logits, Loss, Mask
from decoct.objectives.base import Objective, Probe, Term
from decoct.outputs import Batch, Outputs
from decoct.training.clock import Clock
from decoct.training.schedules import at


@full_precision
def localization_loss(
    student: Logits,
    teacher: Logits,
    *,
    temperature: float = 10.0,
    weight: ItemWeights | None = None,
    mask: Mask | None = None,
) -> Loss:
    """T² · Σ_bins p (log p − log q) for each edge, times its weight, summed and divided by N.

    Edge-bin logits `[N, n+1]`, `weight` `[N]`, `mask` `[N]` bool (N is then the number kept). 0 at student ==
    teacher. Convention: `KnowledgeDistillationKLDivLoss` of mmdet takes a mean over bins, this divided by n+1.

    Zheng et al. 2022, arXiv 2102.12252, equation 4.

    >>> import torch
    >>> x = torch.randn(4, 9)
    >>> localization_loss(x, x, weight=torch.ones(4)).item()
    0.0
    """
    student, teacher = logit_pair("localization_loss", student, teacher, mask, temperature)
    rows = kl_rows(log_softmax(teacher, temperature), log_softmax(student, temperature))
    if weight is not None:
        if weight.shape != rows.shape:
            raise RecipeError(f"localization_loss: student {shape(student)} and weight {shape(weight)}; must be [N]")
        weight = weight.detach().to(rows.dtype)
        rows = rows * (weight if mask is None else weight.masked_fill(~mask, 0.0))
    return temperature**2 * item_mean(rows, mask)


class Localization(Objective):
    """Matches box edges, predicted as distributions over bins (Zheng 2022).

    `edges`: the name among both sides' output values of edge-bin logits `[B, ..., bins]`; `weights`: the name among the
    teacher's values of a weight `[B, ...]` for each edge, None for none; `temperature` a number or schedule. The mean
    goes over all edges, so each sample must have as many.
    """

    use: ClassVar[str] = "localization"
    edges: str = "edges"
    weights: str | None = None
    temperature: Temperature = 10.0

    def build(self, probe: Probe) -> Term:
        """The running term; RecipeError where a side lacks the values or the shapes differ."""
        term = LocalizationTerm(self)
        term(probe.student, probe.teachers, probe.batch, Clock())
        return term


class LocalizationTerm(Term):
    """Feeds both sides' edges to `localization_loss`."""

    def __init__(self, objective: Localization) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock) -> Tensor:
        objective, teacher = self.objective, only(teachers)
        own, theirs = (
            _values(objective, who, outputs, objective.edges)
            for who, outputs in (("student", student), ("teacher", teacher))
        )
        if own.shape != theirs.shape or own.ndim < 2:
            raise RecipeError(
                f"{objective.label}: student {objective.edges} {shape(own)} and teacher {shape(theirs)}; the shapes "
                f"must be equal, [B, ..., bins]"
            )
        weight = None
        if objective.weights is not None:
            weight = _values(objective, "teacher", teacher, objective.weights).flatten()
        temperature = at(objective.temperature, clock)
        return localization_loss(own.flatten(0, -2), theirs.flatten(0, -2), temperature=temperature, weight=weight)

    def items(self, batch: Batch) -> Tensor | int:
        return len(batch)


def _values(objective: Localization, who: str, outputs: Outputs, name: str) -> Tensor:
    if name not in outputs.values:
        raise RecipeError(
            f"{objective.label}: the {who} gives no values {name!r}; {did_you_mean(name, outputs.values)}"
        )
    return outputs.values[name]
