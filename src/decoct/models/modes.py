"""Modes that a module is put into for a while: eval, and kernels whose insides can be followed."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn


class SwitchedOff:
    """One of torch's switches off while some body runs, in whichever thread; after the last it is as it was before."""

    def __init__(self, get: Callable[[], bool], put: Callable[[bool], None]) -> None:
        self._get, self._put = get, put
        self._lock, self._users, self._before = threading.Lock(), 0, True

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._before = self._get()
                self._put(False)
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._put(self._before)


_FAST_PATH = SwitchedOff(torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled)


def as_in_training() -> AbstractContextManager[None]:
    """While the body runs, `nn.TransformerEncoder` and `nn.MultiheadAttention` compute as they do in training.

    In eval mode torch takes a fast path, which gives zeros at padded places where training, and every exported file,
    gives numbers: a model that reads those places answers otherwise than what was trained.

    >>> with as_in_training():
    ...     torch.backends.mha.get_fastpath_enabled()
    False
    """
    return _FAST_PATH


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Eval mode while the body runs, and attention `as_in_training`; then each module has its own mode again, also
    after an exception.

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
        with as_in_training():
            yield
    finally:
        for each, mode in modes:
            each.training = mode


@contextmanager
def training_branches(module: nn.Module) -> Iterator[None]:
    """Training mode while the body runs, for all but torch's own layers, so that branches which only training has run.

    Dropout and batch statistics stay off; modes, buffers and torch's random state are put back.

    >>> module = nn.Sequential(nn.Dropout()).eval()
    >>> with training_branches(module):
    ...     module[0].training
    False
    """
    modes = [(each, each.training) for each in module.modules()]
    buffers = [(each, name, old, old.clone()) for each, name, old in _buffers(module)]
    devices = {each.device.index or 0 for each in module.parameters() if each.device.type == "cuda"}
    try:
        for each, _ in modes:
            each.training = not _of_torch(each)
        with torch.random.fork_rng(devices=sorted(devices)):
            yield
    finally:
        for each, mode in modes:
            each.training = mode
        with torch.no_grad():
            for each, name, old, value in buffers:
                each._buffers[name] = old.copy_(value)


def _buffers(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for each in module.modules():
        yield from ((each, name, buffer) for name, buffer in each._buffers.items() if buffer is not None)


def _of_torch(module: nn.Module) -> bool:
    own = type(module).__module__.startswith("torch.nn.")
    return own or isinstance(module, nn.modules.batchnorm._NormBase | nn.modules.dropout._DropoutNd)


@contextmanager
def plain_kernels() -> Iterator[None]:
    """No fused kernels while the body runs, since a tracer sees one operator in their place."""
    with as_in_training(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=False):
            yield
