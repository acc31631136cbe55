"""Attributes of modules as JSON: which are plain data, and how each is written and read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

INTERNAL = frozenset(vars(nn.Module())) | {"_flat_weights", "_flat_weight_refs"}
"""Attributes that torch keeps by itself."""
IGNORED = frozenset(
    {"name_or_path", "architectures", "transformers_version", "pretrained_cfg", "default_cfg", "_is_hf_initialized"}
)
"""Attributes that say where a network came from and nothing about what it computes."""


class NotPlainError(TypeError):
    """A value that is no plain data."""


def encode(value: Any) -> Any:
    """JSON for plain data; tuples, dtypes and infinities are marked. NotPlainError for all else.

    >>> encode((1, "a"))
    {'tuple': [1, 'a']}
    >>> decode(encode({"x": (1, float("inf"))}))
    {'x': (1, inf)}
    """
    if isinstance(value, np.generic):
        value = value.item()
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if kind in (tuple, torch.Size):
        return {"tuple": [encode(each) for each in value]}
    if kind is list:
        return [encode(each) for each in value]
    if kind is dict:
        return {"dict": [[encode(key), encode(each)] for key, each in value.items()]}
    if kind is torch.dtype:
        return {"dtype": str(value).removeprefix("torch.")}
    raise NotPlainError(kind.__name__)


def decode(value: Any) -> Any:
    """What `encode` wrote."""
    if isinstance(value, list):
        return [decode(each) for each in value]
    if not isinstance(value, dict):
        return value
    ((mark, content),) = value.items()
    readers: dict[str, Callable[[Any], Any]] = {
        "float": float,
        "tuple": lambda parts: tuple(decode(each) for each in parts),
        "dict": lambda pairs: {decode(key): decode(each) for key, each in pairs},
        "dtype": as_dtype,
    }
    return readers[mark](content)


def as_dtype(name: str) -> torch.dtype:
    """The dtype of a name such as "float32"."""
    found = vars(torch).get(name)
    assert isinstance(found, torch.dtype), name
    return found


def attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and values of what a module keeps beside its tensors and submodules."""
    for name, value in vars(module).items():
        if name not in INTERNAL and name not in IGNORED:
            yield name, value


def plain_attributes(owner: nn.Module | object) -> dict[str, Any]:
    """Plain attributes by name, as JSON; of an object that is no module only public ones."""
    items = attributes(owner) if isinstance(owner, nn.Module) else vars(owner).items()
    found = {}
    for name, value in items:
        if name in IGNORED or (name.startswith("_") and not isinstance(owner, nn.Module)):
            continue
        try:
            found[name] = encode(value)
        except NotPlainError:
            continue
    return found


def settings_objects(module: nn.Module) -> dict[str, Any]:
    """Attributes that are objects with attributes of their own, as the `config` of a transformer."""
    return {name: value for name, value in attributes(module) if _is_settings(value)}


def functions(module: nn.Module) -> dict[str, str]:
    """Names of what is callable among a module's attributes, by attribute."""
    return {
        name: getattr(value, "__qualname__", type(value).__qualname__)
        for name, value in attributes(module)
        if callable(value) and not isinstance(value, nn.Module | Tensor)
    }


def _is_settings(value: Any) -> bool:
    if isinstance(value, nn.Module | Tensor | type) or callable(value):
        return False
    return bool(getattr(value, "__dict__", None))
