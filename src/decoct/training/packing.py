"""Nested state dicts as JSON and named tensors, and back: what a checkpoint is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Packed = tuple[Any, dict[str, Tensor]]


def pack(value: Any, *, copy: bool = False) -> Packed:
    """Plain JSON data and a table of tensors that `unpack` makes `value` from again.

    Takes None, bool, int, float, str, list, tuple, dict (any of these as keys), tensors, NumPy arrays and scalars.
    A tensor that occurs twice (tied weights) is kept once. `copy`: the table shares no memory with `value`.
    TypeError names the place of anything else.

    >>> data, tensors = pack({"state": {0: (torch.ones(2), None)}})
    >>> unpack(data, tensors)
    {'state': {0: (tensor([1., 1.]), None)}}
    """
    packer = _Packer(copy)
    return packer.data(value, ""), packer.tensors


def unpack(data: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `pack` was given; its tensors are those of the table."""
    if isinstance(data, list):
        return [unpack(each, tensors) for each in data]
    if not isinstance(data, dict):
        return data
    tag: str
    content: Any
    tag, content = next(iter(data.items()), ("", None))
    if tag == "~tensor":
        return tensors[content]
    if tag == "~array":
        raw = tensors[content["name"]].numpy().tobytes()
        return np.frombuffer(raw, dtype=content["dtype"]).reshape(content["shape"]).copy()
    if tag == "~float":
        return float(content)
    if tag == "~tuple":
        return tuple(unpack(each, tensors) for each in content)
    if tag == "~dict":
        return {unpack(key, tensors): unpack(each, tensors) for key, each in content}
    return {key: unpack(each, tensors) for key, each in data.items()}


class _Packer:
    def __init__(self, copy: bool) -> None:
        self.copy = copy
        self.tensors: dict[str, Tensor] = {}
        self._seen: dict[tuple[Any, ...], str] = {}

    def data(self, value: Any, path: str) -> Any:
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"~float": repr(float(value))}
        if isinstance(value, Tensor):
            return {"~tensor": self._tensor(value.detach(), path)}
        if isinstance(value, np.generic):
            return self.data(value.item(), path)
        if isinstance(value, np.ndarray):
            return {"~array": self._array(value, path)}
        if isinstance(value, tuple):
            return {"~tuple": self._items(value, path)}
        if isinstance(value, list):
            return self._items(value, path)
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        raise TypeError(f"{path or 'the state'} is a {type(value).__name__}; a checkpoint takes tensors and plain data")

    def _items(self, values: Any, path: str) -> list[Any]:
        return [self.data(each, _join(path, i)) for i, each in enumerate(values)]

    def _mapping(self, value: Mapping[Any, Any], path: str) -> dict[str, Any]:
        if all(isinstance(key, str) for key in value) and not any(key.startswith("~") for key in value):
            return {key: self.data(each, _join(path, key)) for key, each in value.items()}
        return {"~dict": [[self.data(key, path), self.data(each, _join(path, key))] for key, each in value.items()]}

    def _array(self, value: np.ndarray, path: str) -> dict[str, Any]:
        if value.dtype.hasobject:
            raise TypeError(f"{path or 'the state'} is an array of Python objects; a checkpoint takes numbers")
        raw = torch.frombuffer(bytearray(value.tobytes()), dtype=torch.uint8) if value.nbytes else torch.empty(0)
        return {"name": self._add(raw, path), "dtype": value.dtype.str, "shape": list(value.shape)}

    def _tensor(self, value: Tensor, path: str) -> str:
        place = (value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if value.numel() and place in self._seen:
            return self._seen[place]
        whole = value.is_contiguous() and value.untyped_storage().nbytes() == value.numel() * value.element_size()
        kept = value if whole and not self.copy else value.clone(memory_format=torch.contiguous_format)
        name = self._seen[place] = self._add(kept, path)
        return name

    def _add(self, value: Tensor, path: str) -> str:
        name = path or "value"
        while name in self.tensors:
            name += "'"
        self.tensors[name] = value
        return name


def _join(path: str, key: Any) -> str:
    return f"{path}/{key}" if path else str(key)
