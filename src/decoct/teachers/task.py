"""Task as a teacher sees it: what it takes, what it answers in, and how an answer is scored."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from decoct.outputs import Batch, Needs, Outputs, Predictor


class Task(Protocol):
    """The part of `decoct.tasks.base.Task` that teachers use; its room stands beside theirs."""

    use: ClassVar[str]
    output: ClassVar[str]

    @property
    def metric(self) -> tuple[str, Literal["max", "min"]]: ...

    def plain(self, *, defaults: bool = True) -> dict[str, Any]: ...

    def preprocessing(self, side: str) -> nn.Module: ...

    def forward(self, model: nn.Module, batch: Batch, needs: Needs, side: str) -> Outputs: ...

    def feed(self, batch: Batch, side: str) -> dict[str, np.ndarray]: ...

    def target_of(self, value: Any) -> Tensor: ...

    def score(self, predict: Predictor, batches: Iterable[Batch]) -> dict[str, float]: ...
