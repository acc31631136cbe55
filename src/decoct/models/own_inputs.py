"""Modules that write into what they take: each is given inputs of its own, so that nobody else sees what it wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.outputs import changed, leaves

Found = TypeVar("Found")
_Mode = tuple[bool, bool]
_WRITES: WeakKeyDictionary[nn.Module, dict[_Mode, bool]] = WeakKeyDictionary()
"""Whether a module writes into its inputs, for modules that ran before, by mode (training, with gradients)."""


def with_own_inputs(module: nn.Module, run: Callable[[Any], Found], inputs: Any, held: Any) -> Found:
    """`run(inputs)`, on a copy of them where `module` writes into what it takes (`x.sub_(m)`, an in-place ReLU first).

    The first time in a mode (training or eval, with gradients or without) it is a copy; where the copy then proves
    untouched, never again in that mode. `held`: the tensors of others (a batch's) that must stay as they are; `inputs`
    may be these, or views of them. RecipeError where a module writes into them later on, though not at first.

    >>> net, x = nn.Sequential(nn.ReLU(inplace=True)), torch.tensor([-1.0, 1.0])
    >>> with_own_inputs(net, net, x, x), x
    (tensor([0., 1.]), tensor([-1.,  1.]))
    """
    if torch.compiler.is_compiling():
        return run(copy_of(inputs))
    known = _WRITES.setdefault(module, {})
    mode = (module.training, torch.is_grad_enabled())
    if known.get(mode, True):
        own = copy_of(inputs)
        before = _versions(own)
        found = run(own)
        if mode not in known:
            known[mode] = _versions(own) != before or not _equal(own, inputs)
        return found
    before = _versions(held)
    found = run(inputs)
    if _versions(held) != before:
        known[mode] = True
        raise RecipeError(
            f"{type(module).__name__} wrote into its inputs in this forward pass and not in those before it, so the "
            "batch is no longer what the data say, for the student, teachers and stores alike; let its forward work "
            "on a copy where it does so: x = x.clone()"
        )
    return found


def copy_of(inputs: Any) -> Any:
    """The same with a copy of every tensor and array in it."""
    return changed(inputs, lambda each: each.clone() if isinstance(each, Tensor) else each.copy())


def _versions(value: Any) -> list[int | None]:
    """How often each tensor was written to; None for what does not count it (arrays, tensors of inference mode)."""
    if type(value) is tuple and len(value) == 2 and isinstance(value[0], Tensor) and value[1] is None:  # as mostly
        return [None if value[0].is_inference() else value[0]._version]
    return [each._version if isinstance(each, Tensor) and not each.is_inference() else None for each in leaves(value)]


def _equal(own: Any, given: Any) -> bool:
    """Whether all numbers are the same, those that are NaN too: what was written past the counter (`x.data`)."""
    return all(_alike(a, b) for a, b in zip(leaves(own), leaves(given)))


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return a.tobytes() == b.tobytes()
    if a.layout != torch.strided or a.is_nested or a.is_quantized:
        return True
    a, b = a.detach(), b.detach()
    return bool(torch.equal(a, b) or ((a == b) | ((a != a) & (b != b))).all())
