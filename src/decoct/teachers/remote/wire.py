"""Values with tensors over a pipe between two processes of ours: one copy in, one copy out.

Both ends are this program: processes of this machine, or actors of a Ray cluster that it joined, where Ray carries the
bytes. What comes from a server is read by `tensors.py`, which knows no pickle.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor


def encoded(value: Any) -> tuple[bytes, list[memoryview]]:
    """A description of `value`, and the memory of its tensors and arrays, not copied where it is dense."""
    buffers: list[pickle.PickleBuffer] = []
    head = io.BytesIO()
    _Pickler(head, protocol=5, buffer_callback=buffers.append).dump(value)
    return head.getvalue(), [each.raw() for each in buffers]


def decoded(head: bytes, buffers: Sequence[Any]) -> Any:
    """The value again; its tensors live in `buffers`, which must be writable.

    >>> value = {"x": torch.arange(6.0).view(2, 3).t(), "y": ["a", None]}
    >>> head, buffers = encoded(value)
    >>> again = decoded(head, [bytearray(each) for each in buffers])
    >>> again["x"].stride(), again["x"].equal(value["x"]), again["y"]
    ((1, 3), True, ['a', None])
    """
    return pickle.loads(head, buffers=buffers)  # noqa: S301 - from a process of ours


def send(connection: Connection, value: Any) -> None:
    """Writes `value`; returns when the other end has taken it up to what the pipe holds."""
    write(connection, *encoded(value))


def write(connection: Connection, head: bytes, buffers: Sequence[memoryview]) -> None:
    """Writes what `encoded` made."""
    connection.send_bytes(pickle.dumps((head, [each.nbytes for each in buffers])))
    for each in buffers:
        if each.nbytes:
            connection.send_bytes(each)


def receive(connection: Connection) -> Any:
    """Waits for a value; EOFError where the other end is gone."""
    head, sizes = pickle.loads(connection.recv_bytes())  # noqa: S301 - from a process of ours
    memory = [torch.empty(size, dtype=torch.uint8).numpy() for size in sizes]  # aligned as torch aligns
    for each in memory:
        if each.nbytes:
            connection.recv_bytes_into(each.data)
    return decoded(head, memory)


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
            return NotImplemented
        order = sorted(range(value.ndim), key=lambda axis: value.stride(axis), reverse=True)
        plain = value.detach().resolve_conj().resolve_neg().cpu()
        dense = plain.permute(order)
        if dense.is_contiguous():  # strides stay as they are: of axes of length 1 too, by which torch picks kernels
            raw, strides = dense.reshape(-1), plain.stride()
        else:
            plain = plain.contiguous()
            raw, strides = plain.reshape(-1), plain.stride()
        raw = raw.view(torch.uint8) if len(raw) else torch.empty(0, dtype=torch.uint8)
        return _tensor, (pickle.PickleBuffer(raw.numpy().data), value.dtype, tuple(plain.shape), strides)


def _tensor(raw: Any, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    """A tensor with the memory layout that it had."""
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(raw, dtype=torch.uint8).view(dtype).as_strided(shape, strides)
