"""Batch, Outputs and `capture`: what goes into a model, what it said, and the only hooks in the house."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from decoct.errors import PathError, did_you_mean


@dataclass(frozen=True)
class Batch:
    """Samples as models take them.

    `inputs` by side ("student", "teacher"): what that side's preprocessing takes, raw (pixels, ids, columns).
    `target` is what the task's loss takes; `labelled` `[B]` bool, None when every sample is;
    `keys` `[B]` uint64 content keys; `view` says which augmented view this is (epoch or k); `also` a second source.
    """

    inputs: Mapping[str, Any]
    target: Any = None
    labelled: Tensor | None = None
    keys: Any = None
    view: int = 0
    also: Batch | None = None

    def __len__(self) -> int:
        return _length(next(iter(self.inputs.values())))

    def side(self, name: str) -> Any:
        """The inputs of one side."""
        if name not in self.inputs:
            raise KeyError(f"the batch has no inputs for side {name!r}; {did_you_mean(name, self.inputs)}")
        return self.inputs[name]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with all its tensors on `device`; one object shared by two sides stays shared."""
        memo: dict[int, Any] = {}
        return replace(
            self,
            inputs={name: _move(value, device, memo) for name, value in self.inputs.items()},
            target=_move(self.target, device, memo),
            labelled=_move(self.labelled, device, memo),
            also=None if self.also is None else self.also.to(device),
        )


@dataclass(frozen=True)
class Outputs:
    """What a model said about a batch.

    `logits` `[*B, C]`, class axis last (regression: `[*B, 1]` or `[*B, D]` predictions); `mask` `[*B]`, True where a
    position counts; `features` captured by path (`"a.b"`, `"a.b[0]"` of a tuple, `"a.b#1"` the second call of a
    shared module); `values` boxes, embeddings, spectra; `losses` computed inside the model; `heads` several tasks.
    """

    logits: Tensor | None = None
    mask: Tensor | None = None
    values: Mapping[str, Tensor] = field(default_factory=dict)
    features: Mapping[str, Tensor] = field(default_factory=dict)
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    heads: Mapping[str, Outputs] = field(default_factory=dict)


Predictor = Callable[[Batch], Outputs]
"""A torch model, a teacher, a store, an estimator, an exported file: all alike."""


@dataclass(frozen=True)
class Needs:
    """What terms want of a model beside its logits: `features` paths, and `gradient` of the outputs to the inputs."""

    features: frozenset[str] = frozenset()
    gradient: bool = False

    def __or__(self, other: Needs) -> Needs:
        return Needs(self.features | other.features, self.gradient or other.gradient)


_PATH = re.compile(r"^(?P<module>[^\[\]#]*)(?:#(?P<call>\d+))?(?:\[(?P<item>[^\[\]]+)\])?$")


def split_path(path: str) -> tuple[str, int, str | None]:
    """Module path, number of the call and item of a feature path.

    >>> split_path("encoder.layer.3[0]"), split_path("shared#1")
    (('encoder.layer.3', 0, '0'), ('shared', 1, None))
    """
    match = _PATH.match(path)
    if match is None:
        raise PathError(f"feature path {path!r}: write module.path, module.path#CALL or module.path[ITEM]")
    return match["module"], int(match["call"] or 0), match["item"]


def find_module(model: nn.Module, path: str) -> nn.Module:
    """The submodule at `path`; PathError names the nearest right ones."""
    modules = dict(model.named_modules())
    if path in modules:
        return modules[path]
    names = [name for name in modules if name]
    raise PathError(f"{type(model).__name__} has no module {path!r}; {did_you_mean(path, names)}")


class Captured(Mapping[str, Any]):
    """What `capture` saw: a mapping from the paths asked for to the outputs of their modules."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        self.calls: dict[str, list[Any]] = {split_path(path)[0]: [] for path in paths}

    def __getitem__(self, path: str) -> Any:
        if path not in self._paths:
            raise KeyError(path)
        return _pick(path, self.calls)

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


@contextmanager
def capture(model: nn.Module, paths: Iterable[str]) -> Iterator[Captured]:
    """Collects the outputs of the modules at `paths` while the body runs the model.

    Hooks are removed when the body ends, also by an exception. A path that the model lacks raises PathError at once;
    a module that was not called, or an item that its output lacks, raises PathError when its feature is read.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with capture(model, ["0"]) as features:
    ...     _ = model(torch.ones(1, 2))
    >>> features["0"].shape
    torch.Size([1, 3])
    """
    found = Captured(tuple(dict.fromkeys(paths)))
    handles = []
    try:
        for name, seen in found.calls.items():
            handles.append(find_module(model, name).register_forward_hook(_keeper(seen)))
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _keeper(seen: list[Any]) -> Callable[[nn.Module, Any, Any], None]:
    def keep(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(output)

    return keep


def _pick(path: str, calls: Mapping[str, list[Any]]) -> Any:
    name, call, item = split_path(path)
    seen = calls[name]
    if call >= len(seen):
        raise PathError(f"feature path {path!r}: the module was called {len(seen)} times in this forward pass")
    value = seen[call]
    if item is None:
        if isinstance(value, Tensor):
            return value
        raise PathError(f"feature path {path!r}: the module returns {_describe(value)}; choose one with {name}[ITEM]")
    try:
        value = value[int(item)] if item.isdigit() else value[item]
    except (KeyError, IndexError, TypeError):
        raise PathError(f"feature path {path!r}: no item {item} in {_describe(value)}") from None
    return value


def _describe(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{type(value).__name__} with {', '.join(map(str, value))}"
    if isinstance(value, Sequence):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def _move(value: Any, device: torch.device | str, memo: dict[int, Any]) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    moved = value
    if isinstance(value, Tensor):
        moved = value.to(device, non_blocking=True)
    elif isinstance(value, Mapping):
        moved = {key: _move(each, device, memo) for key, each in value.items()}
    elif isinstance(value, tuple | list):
        moved = type(value)(_move(each, device, memo) for each in value)
    memo[id(value)] = moved
    return moved


def _length(value: Any) -> int:
    if isinstance(value, Mapping):
        return _length(next(iter(value.values())))
    return len(value)
