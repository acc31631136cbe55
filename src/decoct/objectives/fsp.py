"""Flow of solution procedure: how features change from one layer to a later one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives._features import feature
from decoct.objectives._logits import only
from decoct.objectives._maps import as_map, pooled
from decoct.objectives._numeric import full_precision, item_mean, promote, refuse_unlike, shape
from decoct.objectives._shapes import Features, Loss
from decoct.objectives.base import Objective, Probe, Term
from decoct.outputs import Batch, Needs, Outputs
from decoct.training.clock import Clock


@full_precision
def fsp_loss(student_pair: tuple[Features, Features], teacher_pair: tuple[Features, Features]) -> Loss:
    """Mean over all elements of (M_s − M_t)², M `[B, C, D]` = mean over positions of bottom_c · top_d.

    Each pair is (bottom, top) of maps `[B, C, H, W]` or tokens `[B, N, D]`; where H differs within the pair, the
    larger map is pooled first; the channels of both sides must be equal. 0 at student == teacher.

    Yim et al. 2017, "A Gift from Knowledge Distillation", equations 1 and 2.

    >>> import torch
    >>> x = torch.ones(1, 2, 4, 4)
    >>> fsp_loss((x, x), (x, 2 * x)).item()
    1.0
    """
    tensors = promote(*student_pair, *teacher_pair)
    own, theirs = _flow(tensors[0], tensors[1]), _flow(tensors[2].detach(), tensors[3].detach())
    refuse_unlike("fsp_loss", own, theirs, "the channels of bottom and top must match")
    return item_mean((own - theirs).square())


def _flow(bottom: Tensor, top: Tensor) -> Tensor:
    a, b = pooled("fsp_loss", bottom, top)
    a, b = as_map("fsp_loss", a), as_map("fsp_loss", b)
    if len(a) != len(b) or a.shape[2] != b.shape[2]:
        raise RecipeError(f"fsp_loss: bottom {shape(bottom)} and top {shape(top)}; positions must match")
    return a @ b.mT / a.shape[2]


class FSP(Objective):
    """Matches how features change from a lower layer to a higher one (Yim 2017).

    `student_layers` and `teacher_layers`: (bottom, top) module paths, whose numbers of channels must match.
    """

    use: ClassVar[str] = "fsp"
    student_layers: tuple[str, str]
    teacher_layers: tuple[str, str]

    def needs(self) -> Mapping[str, Needs]:
        return {
            "student": Needs(features=frozenset(self.student_layers)),
            "teacher": Needs(features=frozenset(self.teacher_layers)),
        }

    def build(self, probe: Probe) -> Term:
        term = FSPTerm(self)
        term(probe.student, probe.teachers, probe.batch, Clock())
        return term


class FSPTerm(Term):
    """Compares the two flows."""

    def __init__(self, objective: FSP) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock) -> Tensor:
        teacher = only(teachers)
        low, high = self.objective.student_layers
        t_low, t_high = self.objective.teacher_layers
        own = (feature(self.objective, "student", student, low), feature(self.objective, "student", student, high))
        theirs = (
            feature(self.objective, "teacher", teacher, t_low),
            feature(self.objective, "teacher", teacher, t_high),
        )
        return fsp_loss(own, theirs)

    def items(self, batch: Batch) -> Tensor | int:
        return len(batch)
