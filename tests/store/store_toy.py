"""A small store, written as the label step writes it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from decoct.artifact import writing
from decoct.data.hashing import keyed
from decoct.outputs import Outputs
from decoct.store.codecs.base import Codec
from decoct.store.finish import seal
from decoct.store.layout import Layout
from decoct.store.shards import finished, shard_name, write_shard


def seen_of(numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    """uint64 hashes of sample numbers."""
    return keyed("seen", np.asarray(numbers))


def logits_of(numbers: Sequence[int] | np.ndarray, classes: int) -> torch.Tensor:
    """What the teacher says of each sample number, whatever its batch mates."""
    rows = [torch.randn(classes, generator=torch.Generator().manual_seed(int(n))) * 3 for n in numbers]
    return torch.stack(rows)


def write_work(work: Path, count: int, classes: int, shards: int, codec: Codec | None = None) -> Layout:
    """Shards of samples 0 .. count - 1."""
    layout = Layout.of(Outputs(logits_of([0], classes)), codec)
    for number, part in enumerate(np.array_split(np.arange(count), shards)):
        rows = layout.encode(Outputs(logits_of(part, classes)), seen=seen_of(part), keys=part, views=number)
        write_shard(work / shard_name(number), rows, layout)
    return layout


def make_store(folder: Path, count: int = 60, classes: int = 7, shards: int = 4, codec: Codec | None = None) -> Path:
    """A sealed store of samples 0 .. count - 1 in `folder / "store"`."""
    write_work(folder / "work", count, classes, shards, codec)
    with writing(folder / "store", kind="store", name="labels") as draft:
        seal(draft, folder / "work", finished(folder / "work"), {"teacher": "abc"})
    return folder / "store"
