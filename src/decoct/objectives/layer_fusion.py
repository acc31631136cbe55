"""Layer fusion: a student layer against several teacher layers, joined by attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.objectives._features import feature, refuse_open
from decoct.objectives._logits import Temperature, only
from decoct.objectives._numeric import (
    element_mean,
    full_precision,
    promote,
    refuse_temperature,
    refuse_unlike_mask,
    shape,
)
from decoct.objectives._positions import Positions
from decoct.objectives._shapes import Loss, Mask, Tokenwise
from decoct.objectives.adapters import Bridge, Needed, bridge
from decoct.objectives.base import Objective, Probe, Term
from decoct.objectives.layers import stages
from decoct.outputs import Batch, Needs, Outputs
from decoct.training.clock import Clock
from decoct.training.schedules import at


@full_precision
def layer_fusion_loss(
    student: Tokenwise, teacher: Sequence[Tokenwise], *, temperature: float = 1.0, mask: Mask | None = None
) -> Loss:
    """Mean over kept positions and D of (s − Σ_k α_k t_k)², α = softmax over the teacher's layers of ⟨s, t_k⟩/T.

    Tokens `[B, N, D]` or vectors `[B, D]`, the teacher's all of the student's shape; `mask` `[B, N]` bool. α is taken
    at each position, and the gradient goes through it. 0 where one teacher layer is given and equals the student.
    Convention: `F.mse_loss`; the paper takes the first position alone and T = 1.

    Passban et al. 2021 (ALP-KD), arXiv 2012.14022, equations 5 to 7.

    >>> s, t = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    >>> layer_fusion_loss(s, [t, -t]).item(), layer_fusion_loss(s, [t]).item()
    (0.0, 0.5)
    """
    refuse_temperature("layer_fusion_loss", temperature)
    for each in teacher:
        if each.shape != student.shape or student.ndim not in (2, 3):
            raise RecipeError(
                f"layer_fusion_loss: student {shape(student)} and teacher {shape(each)}; allowed: [B, N, D] or [B, D], "
                f"all of one shape"
            )
    tensors = promote(student, *teacher)
    s, layers = tensors[0], [each.detach() for each in tensors[1:]]
    if mask is not None:
        refuse_unlike_mask("layer_fusion_loss", mask, s.shape[:-1])
        s, *layers = (each.masked_fill(~mask.unsqueeze(-1), 0.0) for each in (s, *layers))
    alpha = torch.softmax(torch.stack([(s * each).sum(-1) for each in layers]) / temperature, 0)
    fused = sum((a.unsqueeze(-1) * each for a, each in zip(alpha, layers)), torch.zeros_like(s))
    return element_mean((s - fused).square(), mask)


def _groups(value: Any) -> Any:
    if value == "auto" or (isinstance(value, Mapping) and value and all(value.values())):
        return value
    raise ValueError(f"{value!r} are no layers; write {{STUDENT_PATH: [TEACHER_PATH, ...]}}, or auto")


class LayerFusion(Objective):
    """Draws a layer to several teacher layers at once, joined by attention (Passban 2021).

    `layers`: for each student path the teacher's, or auto: every stage of the student with every stage of the teacher;
    `temperature` divides the scores of the attention. Where widths differ the student is led through a linear layer.
    Features are tokens or vectors; maps are averaged over positions. The value is the sum over the student's layers.
    """

    use: ClassVar[str] = "layer_fusion"
    layers: Annotated[Mapping[str, tuple[str, ...]] | Literal["auto"], BeforeValidator(_groups)]
    temperature: Temperature = 1.0

    @property
    def undecided(self) -> bool:
        return self.layers == "auto"

    def decide(self, student: Outputs, teacher: Outputs) -> Objective:
        own, theirs = (tuple(path for path, _ in stages(each)) for each in (student, teacher))
        if not own or not theirs:
            raise RecipeError(f"{self.label}: layers is auto, and there are no stages to choose from; name the layers")
        return self.replace(layers=dict.fromkeys(own, theirs))

    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """The layers; none while they are to be chosen."""
        return {} if self.layers == "auto" else self.layers

    def needs(self) -> Mapping[str, Needs]:
        groups = self.groups()
        theirs = frozenset(path for paths in groups.values() for path in paths)
        return {"student": Needs(features=frozenset(groups)), "teacher": Needs(features=theirs)}

    def build(self, probe: Probe) -> Term:
        """The running term; RecipeError where teacher layers of one group have unlike widths or positions."""
        refuse_open(self)
        return LayerFusionTerm(self, probe)


class LayerFusionTerm(Term):
    """The bridges to the teacher's widths, and the sum over the student's layers."""

    def __init__(self, objective: LayerFusion, probe: Probe) -> None:
        super().__init__()
        self.objective = objective
        teacher = only(probe.teachers)
        self.bridges = nn.ModuleList()
        self._shown: list[dict[str, Any]] = []
        tokens = True
        for own, paths in objective.groups().items():
            s = promote(feature(objective, "student", probe.student, own))[0]
            found = [feature(objective, "teacher", teacher, path) for path in paths]
            tokens = tokens and s.ndim == 3
            pool = s.ndim == 4 or any(each.ndim == 4 for each in found)
            adapter: Literal["pool", "auto"] = "pool" if pool else "auto"
            needed = Needed(objective.label, adapter, "linear", places=True, reshaped=pool)
            made = bridge(needed, own, s, paths[0], found[0]).to(s.device, s.dtype)
            views = [made.teacher(each) for each in found]
            for path, each, view in zip(paths, found, views):
                if view.shape != views[0].shape:
                    raise RecipeError(
                        f"{objective.label}: teacher {paths[0]} {shape(found[0])} and {path} {shape(each)}; the layers "
                        f"that are joined must have one width"
                    )
                shapes = {"student_shape": list(s.shape[1:]), "teacher_shape": list(each.shape[1:])}
                self._shown.append({"student": own, "teacher": path, **shapes, "adapter": f"{made.text}, attention"})
            with torch.no_grad():
                layer_fusion_loss(made.student(s), views)
            self.bridges.append(made)
        self._positions = Positions(objective, probe, objective.groups() if tokens else ())

    def forward(self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock) -> Tensor:
        teacher, objective = only(teachers), self.objective
        mask = self._positions.kept(batch)
        total: Tensor | None = None
        for made, (own, paths) in zip(self.bridges, objective.groups().items()):
            assert isinstance(made, Bridge)
            s = made.student(promote(feature(objective, "student", student, own))[0])
            layers = [made.teacher(feature(objective, "teacher", teacher, path)) for path in paths]
            value = layer_fusion_loss(s, layers, temperature=at(objective.temperature, clock), mask=mask)
            total = value if total is None else total + value
        assert total is not None
        return total

    def layers(self) -> list[dict[str, Any]]:
        return self._shown

    def items(self, batch: Batch) -> Tensor | int:
        mask = self._positions.kept(batch)
        return len(batch) if mask is None else mask.sum()
