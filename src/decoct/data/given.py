"""Data that came from Python as DataLoaders."""

from __future__ import annotations

import hashlib
import json
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, cast, runtime_checkable

import numpy as np
from pydantic import model_validator

from decoct.data.base import Data, Dataset, Source
from decoct.data.hashing import keyed
from decoct.errors import DataError, RecipeError

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from torch.utils.data.distributed import DistributedSampler

    from decoct.outputs import Batch


class GivenData(Data):
    """DataLoaders passed in from Python: their name in the table of given objects, class and fingerprint.

    `open` gives no splits: the batches come from the loaders themselves, through LoaderSource. `name`: theirs in the
    table of given objects. `type`: the class that they are of. `fingerprint`: a digest of what they hold.
    """

    use: ClassVar[str] = "given"
    reads_files: ClassVar[bool] = False
    name: str
    type: str
    fingerprint: str = ""

    @model_validator(mode="after")
    def _as_the_loaders_say(self) -> Self:
        for name in ("labels", "limit"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, and loaders say themselves what they give; leave it out"
                )
        return self

    def open(self, *, offline: bool = False) -> Dataset:
        return Dataset({}, self.fingerprint or self.digest(), info={"given": self.name})


def describe_loaders(name: str, loaders: Mapping[str, Iterable[Any]]) -> GivenData:
    """The GivenData of loaders by split.

    Its fingerprint covers classes, lengths, all tensors of a TensorDataset (also through Subset and ConcatDataset), and
    of any other data set with indices 64 samples spread evenly over it: a change elsewhere in those is not seen, so
    give such data another folder.
    """
    from torch.utils.data import DataLoader

    state = hashlib.sha256()
    for split, loader in sorted(loaders.items()):
        facts: list[Any] = [split, _class_name(loader), _length(loader)]
        if isinstance(loader, DataLoader):
            facts += [_class_name(loader.dataset), loader.batch_size]
        state.update(json.dumps(facts).encode())
        if isinstance(loader, DataLoader):
            _add_dataset(state, loader.dataset)
    types = ", ".join(sorted({_class_name(loader) for loader in loaders.values()}))
    return GivenData(name=name, type=types, fingerprint=state.hexdigest())


SAMPLED = 64


def _add_dataset(state: Any, dataset: Any) -> None:
    """Adds what a data set holds to a hash."""
    import torch
    from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset

    state.update(_class_name(dataset).encode())
    if isinstance(dataset, Subset):
        state.update(json.dumps([int(each) for each in dataset.indices]).encode())
        _add_dataset(state, dataset.dataset)
    elif isinstance(dataset, ConcatDataset):
        for each in dataset.datasets:
            _add_dataset(state, each)
    elif isinstance(dataset, TensorDataset):
        for tensor in dataset.tensors:
            _add_value(state, tensor)
    elif isinstance(dataset, Sized) and not isinstance(dataset, IterableDataset):
        count = _length(cast(Any, dataset)) or 0
        with torch.random.fork_rng(devices=[]):
            for index in sorted({position * count // SAMPLED for position in range(SAMPLED)} if count else ()):
                torch.manual_seed(index)
                _add_value(state, dataset[index])  # type: ignore[index]


def _add_value(state: Any, value: Any) -> None:
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        state.update(f"{value.dtype} {tuple(value.shape)}".encode())
        state.update(value.flatten().view(torch.uint8).numpy().data if value.numel() else b"")
    elif isinstance(value, np.ndarray):
        state.update(f"{value.dtype} {value.shape}".encode() + value.tobytes())
    elif isinstance(value, Mapping):
        for name, each in value.items():
            state.update(str(name).encode())
            _add_value(state, each)
    elif isinstance(value, tuple | list):
        for each in value:
            _add_value(state, each)
    elif isinstance(value, str | int | float | bool | bytes) or value is None:
        state.update(repr(value).encode())
    else:
        state.update(_class_name(value).encode())


def _length(loader: Iterable[Any]) -> int | None:
    """Batches of a loader; None where it does not know (a DataLoader over an IterableDataset without a length)."""
    if not isinstance(loader, Sized):
        return None
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


ACCELERATED = frozenset({"DataLoaderShard", "DataLoaderDispatcher", "BatchSamplerShard", "IterableDatasetShard"})
"""Classes of accelerate that hand out other samples to each process."""


@runtime_checkable
class Stateful(Protocol):
    """A loader that can be put back to where it was (as torchdata's StatefulDataLoader)."""

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes there."""


class LoaderSource(Source):
    """Batches of a user's loader, each item made a Batch by `to_batch` (as `task.from_loader`).

    Each epoch starts from H(seed, epoch) in the random states of torch, NumPy and Python, in all processes alike. A
    stateful loader resumes by its own state. Any other is replayed: a resumed run draws the same order and drops the
    batches already consumed, which it says once through `warnings`. A loader with a generator of its own cannot be put
    back by that, and this is said as well.
    """

    def __init__(self, loader: Iterable[Any], to_batch: Callable[[Any], Batch], *, seed: int = 0) -> None:
        self._loader, self._to_batch, self._seed = loader, to_batch, seed
        self._epoch = self._batch = 0
        self._skip = 0
        self._warned = False

    @property
    def length(self) -> int | None:
        return _length(self._loader)

    @property
    def divided(self) -> bool:
        """Whether the loader hands out other samples to each of several processes by itself."""
        from torch.utils.data import DataLoader
        from torch.utils.data.distributed import DistributedSampler

        if not isinstance(self._loader, DataLoader):
            return False
        inside = [self._loader, self._loader.dataset, *_samplers(self._loader)]
        return any(isinstance(each, DistributedSampler) or type(each).__name__ in ACCELERATED for each in inside)

    def refuse_other_division(self, rank: int, count: int) -> None:
        """RecipeError where a DistributedSampler gives another part than that of process `rank` of `count`."""
        for each in _distributed(self._loader):
            if (each.rank, each.num_replicas) != (rank, count):
                raise RecipeError(
                    f"the loader's DistributedSampler has rank {each.rank} and num_replicas {each.num_replicas}, and "
                    f"this is process {rank} of {count}; leave both out, or give it this process's"
                )

    @property
    def fresh(self) -> bool:
        """Whether the next batch is the first of an epoch that starts from its seed."""
        return self._batch == 0

    def __iter__(self) -> Iterator[Batch]:
        resumed = self._skip > 0
        count = 0
        for batch in self._rest_of_epoch():
            count += 1
            yield batch
        if resumed and count == 0 and self.length is not None:
            yield from self._rest_of_epoch()

    def _rest_of_epoch(self) -> Iterator[Batch]:
        epoch = self._epoch
        for item in self._items():
            self._batch += 1
            yield replace(self._to_batch(item), view=epoch)
        if self._batch == 0:
            raise DataError(f"{_class_name(self._loader)} gave no batch in epoch {epoch}; is it a generator, used up?")
        self._epoch, self._batch = epoch + 1, 0

    def _items(self) -> Iterator[Any]:
        _tell_epoch(self._loader, self._epoch)
        if isinstance(self._loader, Stateful) and self._batch:
            yield from self._loader  # its own state says where it goes on
            return
        skip, self._skip = self._skip, 0
        with self._seeded():
            iterator = iter(self._loader)
            found = [item for _, item in zip(range(max(skip, 1)), iterator)]
        yield from found[skip:]
        yield from iterator

    def _seeded(self) -> AbstractContextManager[None]:
        return _random_state_kept(int(keyed(self._seed, "loader", self._epoch)[0] >> np.uint64(1)))

    def state_dict(self) -> dict[str, Any]:
        """`{"epoch", "batch"}`, and `"loader"`, the loader's own state, where it has one."""
        state: dict[str, Any] = {"epoch": self._epoch, "batch": self._batch}
        if isinstance(self._loader, Stateful):
            with self._seeded():  # some draw the order of their epoch when first asked for their state
                state["loader"] = self._loader.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._epoch, self._batch = state["epoch"], state["batch"]
        if isinstance(self._loader, Stateful):
            self._loader.load_state_dict(state["loader"])
            return
        self._skip = self._batch
        if self._skip and not self._warned:
            self._warned = True
            warnings.warn(_replay_message(self._loader, self._epoch, self._batch), stacklevel=2)


@contextmanager
def _random_state_kept(seed: int) -> Iterator[None]:
    """Runs the body from random states seeded with `seed`; after it all of them are as before. CUDA's stay."""
    import torch

    python, numpy, whole = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
    finally:
        torch.set_rng_state(whole)
        random.setstate(python)
        np.random.set_state(numpy)


def _replay_message(loader: Iterable[Any], epoch: int, batch: int) -> str:
    from torch.utils.data import DataLoader

    message = f"{_class_name(loader)} keeps no state: epoch {epoch} is replayed up to batch {batch}"
    if isinstance(loader, DataLoader) and loader.generator is not None:
        message += "; it has a generator of its own, so its order may differ from the first run's"
    return message


def _tell_epoch(loader: Iterable[Any], epoch: int) -> None:
    for each in _distributed(loader):
        each.set_epoch(epoch)


def _distributed(loader: Iterable[Any]) -> list[DistributedSampler]:
    """The DistributedSamplers of a loader."""
    from torch.utils.data import DataLoader
    from torch.utils.data.distributed import DistributedSampler

    found = _samplers(loader) if isinstance(loader, DataLoader) else []
    return [each for each in found if isinstance(each, DistributedSampler)]


def _samplers(loader: DataLoader) -> list[Any]:
    """The samplers of a loader: of samples, of batches, and those that these wrap."""
    from torch.utils.data import BatchSampler

    found: list[Any] = [loader.sampler, loader.batch_sampler]
    for each in found:  # which grows
        if isinstance(each, BatchSampler) and type(each).__name__ not in ACCELERATED:
            found.append(each.sampler)
    return found


def content(batch: Batch) -> str:
    """SHA-256 of what a batch holds: inputs, target, which samples are labelled."""
    state = hashlib.sha256()
    for each in (batch.inputs, batch.target, batch.labelled):
        _add_value(state, each)
    return state.hexdigest()


def _class_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
