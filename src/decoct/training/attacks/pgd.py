"""PGD: steps along the sign of the gradient, each brought back within the distance."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from decoct.training.attacks.base import Attack, ascent


class PGD(Attack):
    """Projected gradient descent: `steps` of size `step`, from a random start within epsilon or from the clean inputs.

    `step`: how far one step goes, in the units of epsilon. `steps`: how many steps there are. `random_start`: begin at
    a random place within epsilon.

    Madry et al. 2018, arXiv 1706.06083 (there 8/255, steps of 2/255).

    >>> PGD(epsilon=3, step=2, steps=2, random_start=False).perturb(lambda x: -x.sum(), torch.tensor([9.0]))
    tensor([6.])
    """

    use: ClassVar[str] = "pgd"
    step: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    steps: int = Field(default=10, ge=1, le=10_000)
    random_start: bool = True

    def perturb(self, loss: Callable[[Tensor], Tensor], clean: Tensor) -> Tensor:
        with torch.no_grad():
            found = clean
            if self.random_start:
                found = self.within(clean + torch.empty_like(clean).uniform_(-self.epsilon, self.epsilon), clean)
            for _ in range(self.steps):
                found = self.within(found + self.step * ascent(loss, found), clean)
            return found
