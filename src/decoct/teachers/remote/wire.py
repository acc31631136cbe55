"""Values with tensors over a pipe between two processes of ours: one copy in, one copy out.

Both ends are this program: processes of this machine, or actors of a Ray cluster that it joined, where Ray carries the
bytes. What comes from a server is read by `tensors.py`, which knows no pickle.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from decoct.outputs import Head
from decoct.teachers.remote.heads import KEPT, Heads


def encoded(value: Any, sent: Sent | None = None) -> tuple[bytes, list[memoryview]]:
    """A description of `value`, and the memory of its tensors and arrays, not copied where it is dense.

    `sent`: what the other end of the connection has; what is made must then be written to it, in order.
    """
    buffers: list[pickle.PickleBuffer] = []
    head = io.BytesIO()
    pickler = _Pickler(head, protocol=5, buffer_callback=buffers.append)
    pickler.sent = sent
    try:
        pickler.dump(value)
    except BaseException:
        if sent is not None:
            sent.undo()
        raise
    if sent is not None:
        sent.done()
    return head.getvalue(), [each.raw() for each in buffers]


class Sent:
    """Heads of factored distributions that the other end of a connection has, so that each is written once."""

    def __init__(self) -> None:
        self._heads, self._before = Heads(), Heads()
        self._count = 0

    def described(self, head: Head) -> tuple[int, Head | None]:
        """The number of a head, and the head itself where the other end lacks it; 0: it is not to be kept there."""
        if head.weight.is_inference():
            return 0, head
        number = self._heads.name(head)
        if number is not None:
            return number, None
        self._count += 1
        self._heads.keep(head, self._count)
        return self._count, head

    def done(self) -> None:
        """What was described is on its way."""
        self._before = copy.copy(self._heads)

    def undo(self) -> None:
        """What was described since the last time is not."""
        self._heads = copy.copy(self._before)


class Got:
    """Heads that came over a connection, by number."""

    def __init__(self) -> None:
        self._heads: dict[int, Head] = {}

    def head(self, number: int, head: Head | None) -> Head:
        """The head of a number; a new one is kept, and the oldest goes, as at the other end."""
        if head is not None and number:
            self._heads = dict([*self._heads.items(), (number, head)][-KEPT:])
        return self._heads[number] if head is None else head


def decoded(head: bytes, buffers: Sequence[Any], got: Got | None = None) -> Any:
    """The value again; its tensors live in `buffers`, which must be writable.

    `got`: what came over this connection before, where its writer keeps account of what it sent.

    >>> value = {"x": torch.arange(6.0).view(2, 3).t(), "y": ["a", None]}
    >>> head, buffers = encoded(value)
    >>> again = decoded(head, [bytearray(each) for each in buffers])
    >>> again["x"].stride(), again["x"].equal(value["x"]), again["y"]
    ((1, 3), True, ['a', None])
    """
    unpickler = _Unpickler(io.BytesIO(head), buffers=buffers)
    unpickler.got = got
    return unpickler.load()


def send(connection: Connection, value: Any) -> None:
    """Writes `value`; returns when the other end has taken it up to what the pipe holds."""
    write(connection, *encoded(value))


def write(connection: Connection, head: bytes, buffers: Sequence[memoryview]) -> None:
    """Writes what `encoded` made."""
    connection.send_bytes(pickle.dumps((head, [each.nbytes for each in buffers])))
    for each in buffers:
        if each.nbytes:
            connection.send_bytes(each)


def receive(connection: Connection, got: Got | None = None) -> Any:
    """Waits for a value; EOFError where the other end is gone."""
    head, sizes = pickle.loads(connection.recv_bytes())  # noqa: S301 - from a process of ours
    memory = [torch.empty(size, dtype=torch.uint8).numpy() for size in sizes]  # aligned as torch aligns
    for each in memory:
        if each.nbytes:
            connection.recv_bytes_into(each.data)
    return decoded(head, memory, got)


class _Unpickler(pickle.Unpickler):
    """Reads what a process of ours wrote."""

    got: Got | None = None

    def persistent_load(self, pid: Any) -> Head:
        assert self.got is not None, "a head by its number, and nobody kept account of heads"
        number, parts = pid
        return self.got.head(number, None if parts is None else Head(*parts))


class _Pickler(pickle.Pickler):
    sent: Sent | None = None

    def persistent_id(self, value: Any) -> Any:
        """A head by its number, with its parts where it is written for the first time."""
        if self.sent is None or not isinstance(value, Head):
            return None
        number, head = self.sent.described(value)
        return number, None if head is None else (head.weight, head.bias, head.scale, head.softcap)

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
