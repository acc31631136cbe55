"""Channel-wise distillation: where in the map each channel looks."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from decoct.objectives._features import FeatureObjective
from decoct.objectives._logits import Temperature
from decoct.objectives._maps import as_map, equal_pair
from decoct.objectives._numeric import full_precision, item_mean, kl_rows, log_softmax, refuse_temperature
from decoct.objectives._shapes import Loss, Same
from decoct.objectives.adapters import Widths
from decoct.training.clock import Clock
from decoct.training.schedules import at


@full_precision
def channel_wise_loss(student: Same, teacher: Same, *, temperature: float = 4.0) -> Loss:
    """T² · Σ p (log p − log q) / (B·C), p and q softmaxes over H·W for each channel at T.

    Maps `[B, C, H, W]` or tokens `[B, N, D]` of one shape; also dense logits. 0 at student == teacher. Convention: the
    authors' code.

    Shu et al. 2021, arXiv 2011.13256, equation 3.

    >>> import torch
    >>> x = torch.arange(4.0).reshape(1, 1, 2, 2)
    >>> channel_wise_loss(x, x).item()
    0.0
    """
    refuse_temperature("channel_wise_loss", temperature)
    student, teacher = equal_pair("channel_wise_loss", student, teacher)
    s, t = as_map("channel_wise_loss", student), as_map("channel_wise_loss", teacher)
    return temperature**2 * item_mean(kl_rows(log_softmax(t, temperature), log_softmax(s, temperature)))


class ChannelWise(FeatureObjective):
    """Matches where in the map each channel looks (Shu 2021); a learned adapter where widths differ.

    `temperature`: features are divided by it before the softmax over positions, a number or schedule.
    """

    use: ClassVar[str] = "channel_wise"
    widths: ClassVar[Widths] = "connector"
    temperature: Temperature = 4.0

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None, clock: Clock) -> Tensor:
        return channel_wise_loss(student, teacher, temperature=at(self.temperature, clock))
