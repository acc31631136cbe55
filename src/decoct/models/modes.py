"""Modes that a module is put into for a while: eval, and kernels whose insides can be followed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Eval mode while the body runs; then each module has its own mode again, also after an exception.

    >>> module = nn.Sequential(nn.Dropout()).train()
    >>> with evaluating(module):
    ...     module[0].training
    False
    >>> module[0].training
    True
    """
    modes = [(each, each.training) for module in modules for each in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for each, mode in modes:
            each.training = mode


@contextmanager
def plain_kernels() -> Iterator[None]:
    """No fused kernels while the body runs, since a tracer sees one operator in their place."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.backends.mkldnn.flags(enabled=False):
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
