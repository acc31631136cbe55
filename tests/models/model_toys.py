"""Models that need a reading of their own."""

from typing import Any, ClassVar

from torch import Tensor, nn

from decoct.models.base import Model
from decoct.models.interface import Interface
from decoct.outputs import Needs, Outputs


class Net(nn.Module):
    """Returns log-odds with the class axis first, beside what it thought of on the way."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 6), nn.Linear(6, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.hidden(x).tanh()
        return hidden, self.head(hidden).T


class ClassesFirst(Model):
    """A network whose result has to be read."""

    use: ClassVar[str] = "model_toys:ClassesFirst"

    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        return Net(interface.width)

    def run(self, module: nn.Module, inputs: Any, interface: Interface, needs: Needs, target: Any = None) -> Outputs:
        hidden, scores = module(inputs)
        return Outputs(scores.T, values={"hidden": hidden})
