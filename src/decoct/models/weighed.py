"""What a network weighs, asked before it is built: memory that is not there is not taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from decoct.errors import ResourceError
from decoct.memory import free_memory, gigabytes, lacks_memory, memory_full

HEAVY = 1 << 30
"""Bytes of weights from which a network is weighed first, without numbers in it."""
MOST_TENSORS = 50_000
"""Tensors that a network may be made of; one of more layers than that would be built for minutes, and never train."""
MAKERS = frozenset(
    (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.randint, torch.arange, torch.eye)
)
"""Functions that make tensors out of sizes."""
ELSEWHERE = frozenset(("device", "generator", "out", "pin_memory"))
"""Arguments that do not change how large a tensor is."""


def weighed(use: str, build: Callable[[bool], nn.Module], *, pretrained: bool) -> nn.Module:
    """`build(pretrained)`, with the random numbers that it would have drawn by itself.

    ResourceError, before memory is taken, where the weights would not fit into what is free: it names the model `use`.
    """
    randomness = torch.get_rng_state()
    try:
        with Weighed(use, HEAVY):
            return build(pretrained)
    except _Heavy:
        torch.set_rng_state(randomness)
    try:
        with torch.device("meta"), Weighed(use):
            build(False)
    except ResourceError:
        raise
    except Exception:  # noqa: S110 - not all can be built without numbers; they are weighed on the way
        pass
    with Weighed(use):
        return build(pretrained)


class _Heavy(BaseException):
    """A network is so heavy that it is to be weighed first; no library takes it for an error of its own."""


class Weighed(TorchFunctionMode):
    """Inside, tensors are made only as long as all of them fit into the memory that was free; numbers stay the same.

    `heavy`: bytes from which _Heavy is raised instead.

    >>> with Weighed("mlp"):  # doctest: +ELLIPSIS
    ...     torch.empty(1 << 30, 1 << 20)
    Traceback (most recent call last):
    decoct.errors.ResourceError: mlp: its weights would take 4,503,600 GB of memory or more, ... GB are free; take ...
    """

    def __init__(self, use: str, heavy: int | None = None) -> None:
        super().__init__()
        self.use, self.heavy, self.free = use, heavy, free_memory()
        self.taken = self.made = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in MAKERS and "out" not in kwargs:
            self._weigh(func, args, kwargs)
        return func(*args, **kwargs)

    def _weigh(self, func: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> None:
        self.made += 1
        if self.made > MOST_TENSORS:
            raise ResourceError(
                f"{self.use}: it would be made of more than {MOST_TENSORS:,} tensors; take fewer layers"
            )
        where = kwargs.get("device")
        if where is not None and torch.device(where).type != "cpu":
            return
        sizes = {name: value for name, value in kwargs.items() if name not in ELSEWHERE}
        try:
            self.taken += func(*args, **sizes, device="meta").nbytes
        except RuntimeError as error:
            if lacks_memory(error):
                raise memory_full(error, f"{self.use}: its weights") from None
            return  # the call itself says what is wrong
        if self.taken > self.free:
            raise ResourceError(
                f"{self.use}: its weights would take {gigabytes(self.taken)} of memory or more, {gigabytes(self.free)} "
                "are free; take fewer or narrower layers"
            )
        if self.heavy is not None and self.taken > self.heavy:
            raise _Heavy
