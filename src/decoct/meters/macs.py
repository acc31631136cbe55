"""Multiply-accumulates of one forward pass, counted operator by operator while it runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from decoct.models.modes import evaluating, plain_kernels
from decoct.models.own_inputs import copy_of


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of matrix products, convolutions, recurrences and attention.

    `by_module`: of each module path, what runs inside it; `by_type`: of each class of leaf module.
    """

    total: int
    by_module: Mapping[str, int]
    by_type: Mapping[str, int]


def macs(module: nn.Module, inputs: Mapping[str, Tensor]) -> Macs:
    """Counts one call `module(**inputs)` in eval mode; elementwise work is not counted, as is usual.

    Half of torch's floating point operations (`torch.utils.flop_counter`). Fused kernels that the counter does not
    know (oneDNN's recurrence, the encoder's fast path) are switched off while it counts.

    >>> macs(nn.Linear(3, 4), {"input": torch.zeros(1, 3)}).total
    12
    """
    from torch.utils.flop_counter import FlopCounterMode  # brings triton along

    counter = FlopCounterMode(display=False)
    with evaluating(module), plain_kernels(), torch.no_grad(), counter:
        module(**copy_of(dict(inputs)))
    inside = {name: sum(each.values()) // 2 for name, each in counter.get_flop_counts().items()}
    total = inside.pop("Global", 0)
    root = type(module).__name__
    by_module = {name.removeprefix(f"{root}."): count for name, count in inside.items() if name != root}
    return Macs(total, by_module, _by_type(module, by_module))


def _by_type(module: nn.Module, by_module: Mapping[str, int]) -> dict[str, int]:
    """Each module's own work, without that of its children, summed over its class."""
    types: dict[str, int] = defaultdict(int)
    for name, child in module.named_modules():
        if name in by_module:
            inner = sum(by_module.get(f"{name}.{each}", 0) for each, _ in child.named_children())
            if by_module[name] > inner:
                types[type(child).__name__] += by_module[name] - inner
    return dict(types)
