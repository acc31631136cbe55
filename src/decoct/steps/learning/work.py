"""Work: multiply-accumulates that run while a body does, near enough to choose a number of threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from decoct.models.modes import plain_kernels

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


class Work(TorchDispatchMode):
    """Counts `macs` of convolutions, matrix products, attention and recurrences; no number and no random state changes.

    torch's own counter knows more operators and takes a second to import.

    >>> with Work() as work:
    ...     _ = torch.zeros(2, 3) @ torch.zeros(3, 4)
    >>> work.macs
    24
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0
        self._held = plain_kernels()
        self._random: Tensor | None = None

    def __enter__(self) -> Work:
        self._random = torch.get_rng_state()
        self._held.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._held.__exit__(*error)
        assert self._random is not None
        torch.set_rng_state(self._random)

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        self.macs += _macs(str(getattr(function, "overloadpacket", function)).rpartition(".")[2], args, found)
        return found


def _macs(name: str, args: Sequence[Any], found: Any) -> int:
    """Of one operator by its name; 0 of others."""
    if name in PRODUCTS:
        left: Tensor = args[-2]
        return int(found.numel() * left.shape[-1])
    if name == "convolution":
        transposed, weight = args[6], args[1]
        places: Tensor = args[0] if transposed else found
        return int(places.numel() * math.prod(weight.shape[1:]))
    if name.startswith("_scaled_dot_product"):
        query, key = args[0], args[1]
        return int(2 * query.numel() * key.shape[-2])
    return 0
