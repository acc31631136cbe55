"""Attention-based feature distillation: which teacher layer teaches which student layer is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.objectives._features import feature, refuse_open
from decoct.objectives._logits import only
from decoct.objectives._numeric import full_precision, item_mean, promote, shape, unit
from decoct.objectives._shapes import Features, Loss
from decoct.objectives.adapters import Norm, as_map
from decoct.objectives.base import Objective, Probe, Term
from decoct.objectives.layers import stages
from decoct.outputs import Batch, Needs, Outputs
from decoct.training.clock import Clock


@full_precision
def afd_loss(student: Sequence[Features], teacher: Sequence[Features], attention: Features) -> Loss:
    """Σ over teacher layers of the mean over B of Σ_s α · mean over positions of (a_s − a_t)².

    Maps `[B, C, H, W]` of any width and size; `attention` α `[B, T, S]`, with gradient. a = mean over channels of x²,
    the student's adaptively average-pooled to the teacher map's size, flattened, L2-normalised. 0 where every map
    equals every other. The authors' code takes the same sum.

    Ji et al. 2021 (AFD), arXiv 2102.02973, equation 3.

    >>> x = torch.ones(1, 2, 2, 2)
    >>> afd_loss([x, 2 * x], [x], torch.full((1, 1, 2), 0.5)).item()
    0.0
    """
    if not student or not teacher or attention.shape != (len(student[0]), len(teacher), len(student)):
        raise RecipeError(
            f"afd_loss: {len(student)} student and {len(teacher)} teacher maps with attention {shape(attention)}; "
            f"allowed: [B, teacher maps, student maps]"
        )
    tensors = promote(*student, *teacher, attention)
    own, theirs, alpha = tensors[: len(student)], tensors[len(student) : -1], tensors[-1]
    total = alpha.new_zeros(())
    for i, t in enumerate(theirs):
        size = (t.shape[2], t.shape[3])
        wanted = _place(t.detach(), size)
        gaps = [(_place(s, size) - wanted).square().mean(1) for s in own]
        total = total + item_mean((torch.stack(gaps, 1) * alpha[:, i]).sum(1))
    return total


def _place(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Where a map is strong `[B, P]`, at the size wanted."""
    strength = x.square().mean(1, keepdim=True)
    if tuple(x.shape[2:]) != size:
        strength = F.adaptive_avg_pool2d(strength, size)
    return unit(strength.flatten(1))


class AFD(Objective):
    """Learns which teacher layer teaches which student layer, and compares where their maps are strong (Ji 2021).

    `student_layers`, `teacher_layers`: module paths, or auto: all stages of both; `dim`: width of queries and keys.
    Queries come from the teacher's maps, keys from the student's, both averaged over positions; batch norm stands in
    both, so that a batch cannot be split. Tokens are laid out as maps.
    """

    use: ClassVar[str] = "afd"
    splittable: ClassVar[bool] = False
    student_layers: tuple[str, ...] | Literal["auto"] = Field(min_length=1)
    teacher_layers: tuple[str, ...] | Literal["auto"] = Field(min_length=1)
    dim: int = Field(default=128, ge=1, le=65_536)

    @property
    def undecided(self) -> bool:
        return "auto" in (self.student_layers, self.teacher_layers)

    def decide(self, student: Outputs, teacher: Outputs) -> Objective:
        found: dict[str, Any] = {}
        for name, outputs in (("student", student), ("teacher", teacher)):
            paths = tuple(path for path, _ in stages(outputs))
            if not paths:
                raise RecipeError(f"{self.label}: layers are auto, and the {name} has no stages; name them")
            given = getattr(self, f"{name}_layers")
            found[f"{name}_layers"] = paths if given == "auto" else given
        return self.replace(**found)

    def needs(self) -> Mapping[str, Needs]:
        sides = {"student": self.student_layers, "teacher": self.teacher_layers}
        return {name: Needs(features=frozenset(() if each == "auto" else each)) for name, each in sides.items()}

    def build(self, probe: Probe) -> Term:
        """The running term; RecipeError where a feature is neither map nor tokens."""
        refuse_open(self)
        return AFDTerm(self, probe)


class AFDTerm(Term):
    """Queries, keys and positions that are learned; see `afd_loss`."""

    splittable = False

    def __init__(self, objective: AFD, probe: Probe) -> None:
        super().__init__()
        self.objective = objective
        student, teacher = self._maps("student", probe.student), self._maps("teacher", only(probe.teachers))
        dim = objective.dim
        self.queries = nn.ModuleList(_project(each.shape[1], dim) for each in teacher)
        self.keys = nn.ModuleList(_project(each.shape[1], dim) for each in student)
        self.bilinear = nn.Sequential(nn.Linear(dim, dim * len(teacher)), Norm(dim * len(teacher)))
        self.student_place = nn.Parameter(nn.init.xavier_normal_(torch.empty(len(student), dim)))
        self.teacher_place = nn.Parameter(nn.init.xavier_normal_(torch.empty(len(teacher), dim)))
        self.to(student[0].device, student[0].dtype)
        self._shown = [
            {
                "student": ", ".join(objective.student_layers),
                "teacher": path,
                "student_shape": [list(s.shape[1:]) for s in student],
                "teacher_shape": list(t.shape[1:]),
                "adapter": "learned attention",
            }
            for path, t in zip(objective.teacher_layers, teacher)
        ]

    def forward(self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock) -> Tensor:
        own, theirs = self._maps("student", student), self._maps("teacher", only(teachers))
        queries = torch.stack([made(t.mean((2, 3))) for made, t in zip(self.queries, theirs)], 1)
        keys = torch.stack([made(s.mean((2, 3))) for made, s in zip(self.keys, own)], 1)
        size, count, dim = keys.shape
        spread = self.bilinear(keys.flatten(0, 1)).reshape(size, count, len(theirs), dim)
        logits = torch.einsum("bstd,btd->bts", spread, queries) + self.teacher_place @ self.student_place.T
        return afd_loss(own, theirs, torch.softmax(logits / dim**0.5, -1))

    def _maps(self, who: Literal["student", "teacher"], outputs: Outputs) -> list[Tensor]:
        objective = self.objective
        paths = objective.student_layers if who == "student" else objective.teacher_layers
        found = [as_map(objective.label, promote(feature(objective, who, outputs, path))[0]) for path in paths]
        return found if who == "student" else [each.detach() for each in found]

    def layers(self) -> list[dict[str, Any]]:
        return self._shown

    def items(self, batch: Batch) -> Tensor | int:
        return len(batch)


def _project(width: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, dim), Norm(dim), nn.ReLU())
