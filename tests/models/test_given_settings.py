"""What a module is known by: its plain settings too."""

import torch
from torch import nn

from decoct.models.given import fingerprint


class Scaled(nn.Module):
    def __init__(self, factor: float, calls: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.factor, self._calls = nn.Linear(2, 2), factor, calls

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._calls += 1
        return self.factor * self.inner(x)


def test_a_setting_is_part_of_it_and_bookkeeping_is_not() -> None:
    assert fingerprint(Scaled(1.0)) != fingerprint(Scaled(-1.0))
    assert fingerprint(Scaled(1.0)) == fingerprint(Scaled(1.0, calls=3))
    assert fingerprint(nn.Sequential(Scaled(1.0))) != fingerprint(nn.Sequential(Scaled(2.0)))
