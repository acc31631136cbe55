"""Overhaul of feature distillation: a partial distance beyond the teacher's margin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives._features import PairedObjective, PairNetwork, feature
from decoct.objectives._logits import only
from decoct.objectives._maps import equal_pair
from decoct.objectives._numeric import full_precision, promote, refuse_unlike, shape
from decoct.objectives._shapes import Loss, Same
from decoct.objectives.adapters import Adapter
from decoct.objectives.base import Probe
from decoct.outputs import Batch, Needs
from decoct.training.clock import Clock


@full_precision
def ofd_loss(student: Same, teacher: Same, margin: Tensor) -> Loss:
    """Sum over C, H, W, mean over B of a partial squared distance.

    Pre-ReLU features of one shape `[B, C, H, W]` (tokens `[B, N, C]`), margin `[C]`, at most 0. (s−m)² where s > m
    and t ≤ m; (s−t)² where s > t and m < t ≤ 0; (s−t)² where t > 0; else 0. 0 at student == teacher where t > m, and
    elsewhere wherever s ≤ m. The authors' code takes the same sum, weighs deep to shallow layers by halves, divides by
    the batch and by 1000.

    Heo et al. 2019, arXiv 1904.01866, equation 3.

    >>> s, t = torch.tensor([[[[2.0, 1.0, -3.0]]]]), torch.tensor([[[[1.0, -0.5, -4.0]]]])
    >>> ofd_loss(s, t, torch.tensor([-1.0])).item()
    3.25
    """
    student, teacher = equal_pair("ofd_loss", student, teacher)
    channels = student.shape[1] if student.ndim == 4 else student.shape[-1]
    if margin.shape != (channels,):
        raise RecipeError(f"ofd_loss: student {shape(student)} and margin {shape(margin)}; margin must be [{channels}]")
    m = margin.detach().to(student.dtype)
    m = m.reshape(1, -1, 1, 1) if student.ndim == 4 else m
    target = torch.where(teacher > m, teacher, m)
    counts = (teacher > 0) | (student > target)
    return torch.where(counts, (student - target).square(), 0.0).sum() / max(len(student), 1)


@full_precision
def ofd_margin(weight: Same, bias: Same) -> Same:
    """Margin `[C]`: the expected value of a channel given that it is negative, from its batch norm.

    `weight` g and `bias` b `[C]` of the teacher's batch norm before the ReLU; s = |g|. Where Φ(−b/s) > 0.001:
    −s·exp(−(b/s)²/2)/√(2π)/Φ(−b/s) + b, else −3s. No gradient.

    Heo et al. 2019, arXiv 1904.01866, appendix A.

    >>> ofd_margin(torch.tensor([1.0]), torch.tensor([0.0]))
    tensor([-0.7979])
    """
    refuse_unlike("ofd_margin", weight, bias)
    g, b = promote(weight.detach(), bias.detach())
    s = g.abs()
    below = torch.special.ndtr(-b / s)
    expected = -s * torch.exp(-(b / s).square() / 2) / math.sqrt(2 * math.pi) / below + b
    return torch.where(below > 0.001, expected, -3 * s)


class OFD(PairedObjective):
    """Draws features before the ReLU to the teacher's beyond its margin, through a connector (Heo 2019b).

    `layers`: features before the ReLU, such as `{"layer2.1.relu#1@input": "layer2.3.relu#1@input"}` in a ResNet or the
    batch norm itself in a plain net; `batch_norm`: for each teacher path the batch norm that made it, whose weight and
    bias give the margin; by default the path itself. The connector is a 1×1 convolution with batch norm. The paper
    halves the weight from each layer to the one before it: give each its own term to do so.
    """

    use: ClassVar[str] = "ofd"
    auto: ClassVar[Literal["stages", "embedding", "none"]] = "none"
    adapter: Adapter = "conv"
    batch_norm: Mapping[str, str] = Field(default_factory=dict)

    def needs(self) -> Mapping[str, Needs]:
        pairs = self.chosen()
        sources = {f"{self._source(path)}@{part}" for path in pairs.values() for part in ("weight", "bias")}
        return {
            "student": Needs(features=frozenset(pairs)),
            "teacher": Needs(features=frozenset({*pairs.values(), *sources})),
        }

    def _source(self, path: str) -> str:
        return self.batch_norm.get(path, path.partition("@")[0])

    def network(self, student: Tensor, teacher: Tensor, probe: Probe, path: str) -> PairNetwork:
        outputs, source = only(probe.teachers), self._source(path)
        weight, bias = (feature(self, "teacher", outputs, f"{source}@{part}") for part in ("weight", "bias"))
        channels = teacher.shape[1] if teacher.ndim == 4 else teacher.shape[-1]
        if weight.shape != (channels,) or bias.shape != (channels,):
            raise RecipeError(
                f"ofd: {source} has weight {shape(weight)}; wanted is the batch norm of {channels} channels; name it: "
                f"batch_norm: {{{path}: PATH_OF_THE_BATCH_NORM}}"
            )
        return Beyond(ofd_margin(weight, bias))


class Beyond(PairNetwork):
    """The partial distance beyond a margin, which is kept in the checkpoint and not trained."""

    margin: Tensor

    def __init__(self, margin: Tensor) -> None:
        super().__init__()
        self.register_buffer("margin", margin)

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None, batch: Batch, clock: Clock) -> Tensor:
        return ofd_loss(student, teacher, self.margin)
