"""Attack, the Spec of a change of the inputs within a distance, and what is attacked."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.models.modes import evaluating
from decoct.outputs import Batch, Outputs
from decoct.spec import Spec


class Attack(Spec):
    """Describes an attack in raw inputs, before any preprocessing.

    `epsilon`: the largest change of a value, in the units of the inputs (of uint8 images: of 0 to 255, so the usual
    8/255 is 8); `low` and `high`: the range that values stay in, to be given for inputs that are no uint8 images.
    """

    epsilon: float = Field(default=8.0, gt=0, allow_inf_nan=False)
    low: float = 0.0
    high: float = 255.0

    @model_validator(mode="after")
    def _range(self) -> Attack:
        if not self.low < self.high:
            raise ValueError(f"low is {self.low} and high {self.high}; low must be below high")
        return self

    @abstractmethod
    def perturb(self, loss: Callable[[Tensor], Tensor], clean: Tensor) -> Tensor:
        """Inputs in `clean` ± epsilon and [low, high] at which `loss`, a sum over samples, is large; no gradient."""

    def within(self, inputs: Tensor, clean: Tensor) -> Tensor:
        """The nearest inputs that are allowed."""
        near = torch.minimum(torch.maximum(inputs, clean - self.epsilon), clean + self.epsilon)
        return near.clamp(self.low, self.high)


NO_CLASSES = "raises the cross-entropy with class labels, and the task has none; take another step"
"""What is wrong with an attack on a task that predicts something else."""
Loss = Callable[[Outputs, Batch], Tensor]
"""What an attack makes large: a sum over samples, from what the model says of the attacked batch."""


def label_loss(outputs: Outputs, batch: Batch) -> Tensor:
    """Σ cross-entropy with the labels; samples without one give 0 and stay as they are."""
    assert outputs.logits is not None
    return F.cross_entropy(outputs.logits.float(), batch.target, ignore_index=-100, reduction="sum")


def teacher_loss(teacher_outputs: Mapping[str, Outputs]) -> Loss:
    """Σ KL(teacher on the clean inputs ‖ model on the attacked ones), the sum over all teachers."""
    log_p = []
    for role, each in teacher_outputs.items():
        if each.logits is None:
            raise RecipeError(f"attack_loss is 'teacher', and {role} gives no logits")
        log_p.append(each.logits.float().log_softmax(-1))

    def loss(outputs: Outputs, batch: Batch) -> Tensor:
        assert outputs.logits is not None
        log_q = outputs.logits.float().log_softmax(-1)
        return torch.stack([F.kl_div(log_q, each, log_target=True, reduction="sum") for each in log_p]).sum()

    return loss


def attacked(
    attack: Attack, module: nn.Module, forward: Callable[[Batch], Outputs], batch: Batch, side: str, loss: Loss
) -> Batch:
    """The batch with the inputs of `side` as the attack leaves them, float32.

    The attack looks at `module` through `forward` in eval mode, so that no running statistics change; its mode is put
    back. RecipeError for inputs that are no tensor, or whose range is not known.
    """
    clean = batch.side(side)
    if not isinstance(clean, Tensor):
        raise RecipeError("an attack changes numbers; this task gives text")
    if clean.dtype != torch.uint8 and not {"low", "high"} <= attack.model_fields_set:
        raise RecipeError(
            f"attack: the inputs are {clean.dtype}, no uint8 pixels; give low, high and epsilon in their units"
        )
    clean = clean.float()

    def at(inputs: Tensor) -> Tensor:
        changed = batch.altered({side: inputs})
        return loss(forward(changed), changed)

    with evaluating(module):
        found = attack.perturb(at, clean)
    return batch.altered({side: found})


def ascent(loss: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """The sign of the gradient of `loss` at `inputs`; parameters gather no gradient."""
    with torch.enable_grad():
        inputs = inputs.detach().requires_grad_()
        return torch.autograd.grad(loss(inputs), inputs)[0].sign()
