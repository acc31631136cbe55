"""Factor transfer with its paraphraser and translator: the teacher's features put in other words."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from decoct.objectives._features import PairedObjective, PairNetwork
from decoct.objectives.adapters import as_map
from decoct.objectives.base import Probe
from decoct.objectives.factor_transfer import factor_transfer_loss
from decoct.objectives.hint import hint_loss
from decoct.outputs import Batch
from decoct.training.clock import Clock

SLOPE = 0.1


class FactorTranslator(PairedObjective):
    """Compares factors of the teacher (by a paraphraser) and of the student (by a translator) (Kim 2018).

    `rate`: channels of the factors, as a share of the teacher's. `warmup`: the share of the budget in which only the
    paraphraser learns. The value is `factor_transfer_loss` of the factors plus the paraphraser's mean squared error of
    reconstruction, both in one descent; the factors of the teacher take no gradient from the student. The paper trains
    the paraphraser alone first, which a `warmup` above 0 comes near to. Layers as in the authors' code.
    Kim et al. 2018, arXiv 1802.04977, equations 1 to 3.
    """

    use: ClassVar[str] = "factor_translator"
    rate: float = Field(default=0.5, gt=0, le=4)
    warmup: float = Field(default=0.0, ge=0, lt=1)

    def network(self, student: Tensor, teacher: Tensor, probe: Probe, path: str) -> PairNetwork:
        own, theirs = as_map("factor_translator", student).shape[1], as_map("factor_translator", teacher).shape[1]
        return Factors(own, theirs, max(1, round(self.rate * theirs)), self.warmup)


class Factors(PairNetwork):
    """A paraphraser of the teacher's channels, and a translator of the student's."""

    def __init__(self, own: int, theirs: int, factors: int, warmup: float) -> None:
        super().__init__()
        self.warmup = warmup
        self.paraphrase = _chain(nn.Conv2d, (theirs, theirs, factors, factors))
        self.restore = _chain(nn.ConvTranspose2d, (factors, factors, theirs, theirs))
        self.translate = _chain(nn.Conv2d, (own, own, factors, factors))

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None, batch: Batch, clock: Clock) -> Tensor:
        student, teacher = as_map("factor_translator", student), as_map("factor_translator", teacher)
        factors = self.paraphrase(teacher.to(student.dtype))
        value = hint_loss(self.restore(factors), teacher)
        weight = 1.0 if clock.progress >= self.warmup else 0.0
        return value + weight * factor_transfer_loss(self.translate(student), factors)


def _chain(kind: type[nn.Conv2d] | type[nn.ConvTranspose2d], widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [kind(a, b, 3, padding=1), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers)
