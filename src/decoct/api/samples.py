"""What is given to be compared or calibrated on, as the program takes it: tensors, mappings, loaders."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from decoct.errors import DataError, RecipeError
from decoct.outputs import Batch
from decoct.quantization.base import Feeds
from decoct.tasks.base import Reading

SAMPLES = 256
"""How many samples are looked at."""
BATCH = 32
"""In batches of so many samples a data set is read."""
Item = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Real:
    """Samples of the data that a model was trained and scored on, as its task reads them."""

    batches: Sequence[Batch]


def feeds_of(calibration: Any, feed_of: Callable[[Any], Item]) -> Feeds | None:
    """Feeds of the first 256 samples of a tensor, a mapping or a loader; DataError where there are none."""
    if calibration is None:
        return None
    found: list[Item] = []
    rest = SAMPLES
    for item in _items(calibration):
        feed = {name: value[:rest] for name, value in feed_of(item).items()}
        count = len(next(iter(feed.values())))
        found += [feed] if count else []
        rest -= count
        if rest <= 0:
            break
    if not found:
        raise _empty("calibration")
    return lambda: iter(found)


def batches_of(reading: Reading, value: Any, what: str) -> list[Batch]:
    """The first 256 samples of a tensor, a mapping or a loader, as a task reads them; DataError where there are
    none."""
    found: list[Batch] = []
    rest = SAMPLES
    for item in _items(value):
        whole = isinstance(item, Tensor | np.ndarray)
        batch = samples_of(reading, item) if whole else reading.task.from_loader(item)
        batch = batch.take(slice(rest)) if len(batch) > rest else batch
        found += [batch] if len(batch) else []
        rest -= len(batch)
        if rest <= 0:
            break
    if not found:
        raise _empty(what)
    return found


def like_program(reading: Reading, batch: Batch, what: str) -> Item:
    """What a task's program takes of a batch; RecipeError where shape or type is another."""
    return like(what, reading.feed(batch), reading.example(), reading.axes())


def named(model: nn.Module, item: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The inputs of a plain module, by name, in an item of a loader: targets go. RecipeError for an input that the
    module takes and the file does not."""
    if isinstance(item, list | tuple) and len(item):
        item = item[0]
    if isinstance(item, Tensor | np.ndarray) and len(names) == 1:
        item = {names[0]: item}
    if not isinstance(item, Mapping) or not set(names) <= set(item):
        got = ", ".join(map(str, item)) if isinstance(item, Mapping) else type(item).__name__
        raise RecipeError(f"calibration: the model takes {', '.join(names)}, an item gives {got}")
    takes = set(inspect.signature(model.forward).parameters) - {"label", "labels", "target", "targets"}
    further = [name for name in item if name not in names and name in takes]
    if further:
        raise RecipeError(
            f"calibration: an item gives {', '.join(further)} too, which the model takes and example leaves out "
            f"({', '.join(names)}); put it into example, so that the file takes it, or take it out of the calibration "
            "data"
        )
    return {name: torch.as_tensor(item[name]).detach().cpu().numpy() for name in names}


def samples_of(reading: Reading, example: Any) -> Batch:
    """The batch to compare on: the user's raw inputs (tensors or arrays), or made-up ones."""
    made_up, side = reading.example(2), reading.reader
    if example is None:
        return Batch({side: _inputs(reading, made_up)})
    feed = dict(example) if isinstance(example, Mapping) else {next(iter(made_up)): example}
    if set(feed) != set(made_up):
        raise RecipeError(f"example: the artifact's task takes {', '.join(made_up)}, not {', '.join(map(str, feed))}")
    feed = {name: torch.as_tensor(value).detach().cpu() for name, value in feed.items()}
    for name, value in feed.items():
        if value.dtype != made_up[name].dtype:
            raise RecipeError(
                f"example: {name} is {value.dtype}, the artifact's task takes raw inputs, {made_up[name].dtype}"
            )
    like("example", feed, made_up, reading.axes())
    return Batch({side: _inputs(reading, feed)})


def _inputs(reading: Reading, feed: Mapping[str, Tensor]) -> Any:
    """A mapping where models are called by name, else the one tensor."""
    return feed if len(feed) > 1 or reading.kind == "text" else next(iter(feed.values()))


def like(
    what: str, feed: Mapping[str, Any], wanted: Mapping[str, Tensor], axes: Mapping[str, Mapping[int, str]]
) -> Mapping[str, Any]:
    """The feed itself; RecipeError where a shape, beside the free axes, or a type is not the one wanted."""
    for name, value in feed.items():
        free = axes.get(name, {})
        shape = [free.get(axis, size) for axis, size in enumerate(wanted[name].shape)]
        given = list(value.shape)
        fits = len(given) == len(shape) and all(isinstance(size, str) or size == own for size, own in zip(shape, given))
        types = [str(each.dtype).removeprefix("torch.") for each in (wanted[name], value)]
        if not fits or types[0] != types[1]:
            told = ", ".join(map(str, shape))
            raise RecipeError(f"{what}: {name} is {types[1]} {given}; the model takes {types[0]} [{told}]")
    return feed


def _items(value: Any) -> Iterator[Any]:
    """One tensor or mapping whole; a loader's items."""
    if isinstance(value, Dataset) and not isinstance(value, IterableDataset):
        value = DataLoader(value, batch_size=BATCH)
    return iter([value] if isinstance(value, Tensor | np.ndarray | Mapping) else value)


def _empty(what: str) -> DataError:
    return DataError(f"{what}: the data are empty; give some samples of the training or validation data")
