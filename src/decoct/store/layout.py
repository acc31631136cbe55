"""Layout: which columns hold a teacher's Outputs, and both ways between them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decoct.data.hashing import keyed
from decoct.errors import DataError, IntegrityError
from decoct.outputs import Dense, Factored, Outputs, TopK
from decoct.spec import Choice
from decoct.store.codecs.base import Codec, Decoded, raw, typed
from decoct.store.codecs.dense import DenseCodec
from decoct.store.codecs.top_k import TopKCodec
from decoct.store.columns import (
    DTYPES,
    Cell,
    Column,
    Ragged,
    counted,
    joined,
    spread,
    trimmed_mask,
    whole_mask,
)

MASK = "mask"
MEASURED = 1024
"""Up to so many classes the loss by compression is measured on all rows; on one in C / 1024 where there are more."""


@dataclass(frozen=True)
class Rows:
    """Samples as they are written: uint64 `seen` and `keys`, uint32 `views`, and the cells of the layout's columns.

    `measured`: sums over the rows that were measured: their `rows`, `kl` in nats, `kept_mass`.
    """

    seen: np.ndarray
    keys: np.ndarray
    views: np.ndarray
    cells: Mapping[str, Cell]
    measured: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.seen)

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        """All rows of `parts`, which have one layout."""
        cells = {name: joined([part.cells[name] for part in parts]) for name in parts[0].cells}
        names = {name for part in parts for name in part.measured}
        sums = {name: sum(part.measured.get(name, 0.0) for part in parts) for name in sorted(names)}
        seen, keys, views = (np.concatenate([getattr(p, name) for p in parts]) for name in ("seen", "keys", "views"))
        return cls(seen, keys, views, cells, sums)


@dataclass(frozen=True)
class Layout:
    """What a store keeps of each sample.

    `codec` of the logits and their `classes` (None: no logits); `positions`: the axes between sample and class, None
    where they are ragged: kept where `Outputs.mask` `[B, L]` is True. `columns` in their order.
    """

    codec: Codec | None
    classes: int | None
    positions: tuple[int, ...] | None
    columns: tuple[Column, ...]

    @classmethod
    def of(cls, outputs: Outputs, codec: Codec | None = None) -> Layout:
        """The layout that Outputs like these need; without a codec logits are kept as float32, bit for bit.

        A value `boxes` `[B, N, D]` beside `boxes.mask` `[B, N]`, features `[B, L, D]` and logits `[B, L, C]` beside
        `Outputs.mask` `[B, L]` are kept without their padding. `losses` are not kept. DataError for `heads`.
        """
        if outputs.heads:
            raise DataError("the teacher has several heads; a store keeps one: label each by itself")
        columns = []
        mask, shape = outputs.mask, outputs.shape
        ragged = mask is not None and mask.dim() == 2 and (shape is None or len(shape) == 3)
        if mask is not None:
            columns.append(Column(MASK, "bool", () if ragged else tuple(mask.shape[1:]), MASK if ragged else ""))
        classes = positions = None
        if shape is not None:
            codec = DenseCodec(dtype="float32") if codec is None else codec
            classes, positions = shape[-1], None if ragged else tuple(shape[1:-1])
            for name, width in codec.columns(classes).items():
                columns.append(Column(f"logits.{name}", "uint8", (*(positions or ()), width), MASK if ragged else ""))
        for name, value in outputs.values.items():
            columns.append(_value_column(name, value, outputs.values))
        for path, value in outputs.features.items():
            like = ragged and mask is not None and value.dim() == 3 and value.shape[1] == mask.shape[1]
            columns.append(_column(f"features.{path}", value, MASK if like else ""))
        if not columns:
            raise DataError("the teacher gave nothing that a store can keep: no logits, values or features")
        return cls(None if shape is None else codec, classes, positions, tuple(columns))

    @property
    def ragged(self) -> bool:
        """Whether samples have unlike sizes."""
        return any(column.mask for column in self.columns)

    @property
    def width(self) -> int:
        """Bytes of a sample that has one row of each ragged column, the seen, key and view included."""
        return 20 + sum(column.width for column in self.columns)

    def plain(self) -> dict[str, Any]:
        """What JSON holds."""
        return {
            "codec": None if self.codec is None else self.codec.plain(),
            "classes": self.classes,
            "positions": None if self.positions is None else list(self.positions),
            "columns": [column.plain() for column in self.columns],
        }

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Layout:
        """From `plain`; IntegrityError where it is nothing that `plain` gave."""
        try:
            codec = None if data["codec"] is None else Choice("decoct.store.codecs").validate(data["codec"])
            positions = None if data["positions"] is None else tuple(data["positions"])
            return cls(codec, data["classes"], positions, tuple(Column.parse(each) for each in data["columns"]))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise IntegrityError(f"the store's layout is none that decoct wrote ({error!r})") from None

    def digest(self) -> str:
        """SHA-256 of `plain`."""
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()

    def encode(self, outputs: Outputs, *, seen: Any, keys: Any, views: Any = 0, measure: bool = True) -> Rows:
        """Outputs of a batch as rows; DataError where they are not like those that the layout was made for."""
        seen = np.asarray(seen, np.uint64)
        found = Layout.of(outputs, self.codec)
        if found != self:
            raise DataError(f"the teacher's outputs differ from batch to batch: {_difference(self, found)}")
        mask = None if outputs.mask is None else outputs.mask.bool()
        cells: dict[str, Cell] = {}
        measured: dict[str, float] = {}
        if self.codec is not None:
            cells, measured = self._logits(outputs, mask, seen, measure)
        for column in self.columns:
            if not column.name.startswith("logits."):
                cells[column.name] = _cell(column, outputs, mask)
        ordered = {column.name: cells[column.name] for column in self.columns}
        keys = np.broadcast_to(np.asarray(keys, np.uint64), seen.shape)
        return Rows(seen, keys, np.broadcast_to(np.asarray(views, np.uint32), seen.shape), ordered, measured)

    def _logits(
        self, outputs: Outputs, mask: Tensor | None, seen: np.ndarray, measure: bool
    ) -> tuple[dict[str, Cell], dict[str, float]]:
        codec = self.codec
        assert codec is not None
        where = mask if self.positions is None else None
        per_sample = math.prod(self.positions or ())
        hashes = seen if self.positions == () else _position_hashes(seen, per_sample, where)
        distribution, measured = outputs.distribution, dict[str, float]()
        if isinstance(distribution, Factored):
            content, measured = self._by_parts(distribution, where, hashes, measure)
        elif isinstance(distribution, TopK):
            content = _packed(
                codec, distribution.each(lambda each: each[where] if where is not None else each.flatten(0, -2))
            )
        else:
            assert distribution is not None
            logits = distribution.logits[where] if where is not None else distribution.logits.flatten(0, -2)
            content = codec.encode(logits, hashes)
            measured = self._measured(logits, content) if measure else {}
        cells: dict[str, Cell] = {}
        for name, rows in content.items():
            if where is None:
                cells[f"logits.{name}"] = rows.reshape(len(seen), per_sample * rows.shape[1])
            else:
                cells[f"logits.{name}"] = counted(rows, where.cpu())
        return cells, measured

    def _by_parts(
        self, outputs: Factored, where: Tensor | None, hashes: np.ndarray, measure: bool
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """What the codec makes of logits that are written out some rows at a time, and what was measured of them."""
        assert self.codec is not None
        parts: list[dict[str, np.ndarray]] = []
        sums: dict[str, float] = {}
        done = 0
        for logits in outputs.rows(where):
            logits = logits.detach().cpu()
            parts.append(self.codec.encode(logits, hashes[done : done + len(logits)]))
            if measure:
                found = self._measured(logits, parts[-1], done)
                sums = {name: sums.get(name, 0.0) + each for name, each in found.items()} or sums
            done += len(logits)
        return {name: np.concatenate([each[name] for each in parts]) for name in parts[0]}, sums

    def _measured(self, logits: Tensor, content: Mapping[str, np.ndarray], before: int = 0) -> dict[str, float]:
        """Sums over one row in so many, of all rows; `before`: how many came before these."""
        assert self.codec is not None
        assert self.classes is not None
        step = max(1, logits.shape[-1] // MEASURED)
        first = -before % step
        rows = logits[first::step].detach().cpu()
        if not len(rows):
            return {}
        decoded = self.codec.decode({name: each[first::step] for name, each in content.items()}, self.classes)
        lost = self.codec.lost(rows, decoded)
        return {"rows": float(len(rows)), "kl": lost.kl * len(rows), "kept_mass": lost.kept_mass * len(rows)}

    def decode(self, cells: Mapping[str, Cell], length: int | None = None) -> Outputs:
        """Outputs of the samples in `cells`; ragged logits are padded to `length`, or to the longest sample's."""
        masks = {}
        for column in self.columns:
            if column.mask == column.name:
                cell = cells[column.name]
                assert isinstance(cell, Ragged)
                masks[column.name] = whole_mask(cell, length if column.name == MASK else None)
        mask = masks.get(MASK)
        values: dict[str, Tensor] = {}
        features: dict[str, Tensor] = {}
        found = Outputs()
        for column in self.columns:
            group, _, name = column.name.partition(".")
            if group == "logits":
                continue
            tensor = masks[column.name] if column.mask == column.name else _tensor(column, cells[column.name], masks)
            if group == MASK:
                mask = tensor
            else:
                (values if group == "values" else features)[name] = tensor
        if self.codec is not None:
            found = self._decoded(cells, mask)
        return replace(found, mask=mask, values=values, features=features)

    def _decoded(self, cells: Mapping[str, Cell], mask: Tensor | None) -> Outputs:
        assert self.codec is not None
        assert self.classes is not None
        widths = self.codec.columns(self.classes)
        rows = {name: _bytes(cells[f"logits.{name}"]).reshape(-1, width) for name, width in widths.items()}
        decoded = self.codec.decode(rows, self.classes)
        if self.positions is None:
            assert mask is not None
            decoded = _padded(decoded, mask)
        elif self.positions:
            shape = (-1, *self.positions)
            decoded = _each(decoded, lambda each: each.unflatten(0, shape))
        return Outputs(decoded if isinstance(decoded, TopK) else Dense(decoded))


def _position_hashes(seen: np.ndarray, per_sample: int, where: Tensor | None) -> np.ndarray:
    """uint64: a hash for each row of logits, of its sample and its place there."""
    if where is None:
        places = np.tile(np.arange(per_sample), len(seen))
        return keyed("position", np.repeat(seen, per_sample), places)
    sample, place = (each.cpu().numpy() for each in where.nonzero(as_tuple=True))
    return keyed("position", seen[sample], place)


def _each(decoded: Decoded, change: Any) -> Decoded:
    return decoded.each(change) if isinstance(decoded, TopK) else change(decoded)


def _padded(decoded: Decoded, mask: Tensor) -> Decoded:
    """Rows at the True positions of `mask`; elsewhere the uniform distribution, so that no loss becomes NaN there."""
    if isinstance(decoded, Tensor):
        return spread(decoded, mask)
    top = decoded
    kept, each = top.ids.shape[-1], -math.log(top.classes)
    left = math.log(top.classes - kept) if top.classes > kept else -math.inf
    rest = torch.tensor([left + each / temperature for temperature in top.temperatures])
    return replace(
        top,
        ids=spread(top.ids, mask, torch.arange(kept)),
        log_probs=spread(top.log_probs, mask, each),
        rest=spread(top.rest, mask, rest),
        drawn=None if top.drawn is None else spread(top.drawn, mask, top.classes - 1),
        drawn_log_probs=None if top.drawn_log_probs is None else spread(top.drawn_log_probs, mask, each),
    )


def _packed(codec: Codec, top: TopK) -> dict[str, np.ndarray]:
    if not isinstance(codec, TopKCodec) or codec.tail == "uniform":
        raise DataError(
            f"the teacher gives its {top.ids.shape[-1]} largest log-probabilities alone; keep them with the codec "
            "top_k and the tail bucket or sample"
        )
    return codec.pack(top)


def _value_column(name: str, value: Tensor, values: Mapping[str, Tensor]) -> Column:
    own, _, last = name.rpartition(".")
    if last == MASK and own in values:
        return Column(f"values.{name}", "bool", (), f"values.{name}")
    return _column(f"values.{name}", value, f"values.{name}.{MASK}" if f"{name}.{MASK}" in values else "")


def _column(name: str, value: Tensor, mask: str) -> Column:
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise DataError(f"{name} holds {dtype}; a store keeps {', '.join(DTYPES)}")
    return Column(name, dtype, tuple(value.shape[2 if mask else 1 :]), mask)


def _cell(column: Column, outputs: Outputs, mask: Tensor | None) -> Cell:
    group, _, name = column.name.partition(".")
    if group == MASK:
        assert mask is not None
        return trimmed_mask(mask) if column.mask else raw(mask)
    value = (outputs.values if group == "values" else outputs.features)[name]
    if not column.mask:
        return raw(value)
    if column.mask == column.name:
        return trimmed_mask(value.bool())
    own = outputs.values[column.mask.partition(".")[2]].bool() if column.mask != MASK else mask
    assert own is not None
    if tuple(own.shape) != tuple(value.shape[:2]):
        raise DataError(f"{column.name} has the shape {tuple(value.shape)}, its mask {tuple(own.shape)}")
    return counted(raw(value[own]), own.cpu())


def _tensor(column: Column, cell: Cell, masks: Mapping[str, Tensor]) -> Tensor:
    dtype = DTYPES[column.dtype]
    content = _bytes(cell)
    count = len(cell) if not column.mask else content.size // max(column.width, 1)
    tensor = typed(content.reshape(count, column.width), dtype).reshape(count, *column.shape)
    return spread(tensor, masks[column.mask]) if column.mask else tensor


def _bytes(cell: Cell) -> np.ndarray:
    return cell.bytes if isinstance(cell, Ragged) else cell


def _difference(one: Layout, other: Layout) -> str:
    ours, theirs = ({each.name: each for each in layout.columns} for layout in (one, other))
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            return f"{name} was {_described(ours.get(name))} and is {_described(theirs.get(name))}"
    return f"classes {one.classes} and {other.classes}, positions {one.positions} and {other.positions}"


def _described(column: Column | None) -> str:
    return "absent" if column is None else f"{column.dtype} {list(column.shape)}" + (" ragged" * bool(column.mask))
