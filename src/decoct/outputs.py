"""Batch, Outputs and `capture`: what goes into a model, what it said, and the only hooks in the house."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

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
    """The submodule at `path`, by any of its names; PathError names the nearest right ones."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    raise PathError(f"{type(model).__name__} has no module {path!r}; {did_you_mean(path, names)}")


class Captured(Mapping[str, Tensor]):
    """What `capture` saw: a mapping from the paths asked for to the outputs of their modules.

    A feature is what the module returned, also where a later operation changes that tensor in place (`x += shortcut`,
    an in-place ReLU): the first time, a module's output is copied; where it then proves untouched, never again.
    """

    def __init__(self, model: nn.Module, paths: Sequence[str]) -> None:
        self._model = model
        self._paths = {path: split_path(path) for path in paths}
        self._found: dict[str, Tensor | PathError] = {}
        self._calls = {name: 0 for name, _, _ in self._paths.values()}
        self._watched: list[tuple[str, nn.Module, Tensor, int]] = []

    def __getitem__(self, path: str) -> Tensor:
        name = self._paths[path][0]
        found = self._found.get(path)
        if found is None:
            raise PathError(
                f"feature path {path!r}: the module was called {self._calls[name]} times in this forward pass"
            )
        if isinstance(found, PathError):
            raise found
        if self._calls[name] > 1 and "#" not in path and name not in dict(self._model.named_modules()):
            raise PathError(
                f"feature path {path!r}: a shared module, called {self._calls[name]} times; say which: {name}#N"
            )
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def hooks(self) -> Iterator[tuple[str, Callable[[nn.Module, Any, Any], None]]]:
        """Module paths, and the forward hook of each, which keeps what was asked for and nothing else."""
        for name in self._calls:
            wanted = [(path, call, item) for path, (of, call, item) in self._paths.items() if of == name]
            yield name, self._keeper(name, wanted)

    def _keeper(
        self, name: str, wanted: Sequence[tuple[str, int, str | None]]
    ) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            for path, call, item in wanted:
                if call == self._calls[name]:
                    self._found[path] = self._kept(path, module, _pick(path, name, item, output))
            self._calls[name] += 1

        return keep

    def _kept(self, path: str, module: nn.Module, value: Tensor | PathError) -> Tensor | PathError:
        if not isinstance(value, Tensor):
            return value
        if value.is_inference() or torch.compiler.is_compiling():
            return value.clone()
        self._watched.append((path, module, value, value._version))
        return value.clone() if _CHANGED.get(module, True) else value

    def settle(self) -> None:
        """Learns from a finished forward pass which modules' outputs are changed in place after them."""
        for path, module, value, version in self._watched:
            changed = value._version != version
            if changed and self._found[path] is value:
                self._found[path] = PathError(f"feature path {path!r}: changed in place in this pass and not before it")
            _CHANGED[module] = changed or (module in _CHANGED and _CHANGED[module])
        self._watched.clear()


_CHANGED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether what follows a module changes its output in place, for modules that were captured before."""


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
    found = Captured(model, tuple(dict.fromkeys(paths)))
    handles = []
    try:
        for name, keep in found.hooks():
            handles.append(find_module(model, name).register_forward_hook(keep))
        yield found
        found.settle()
    finally:
        for handle in handles:
            handle.remove()


def _pick(path: str, name: str, item: str | None, value: Any) -> Tensor | PathError:
    """The tensor that a path asks for in a module's output, or the error that reading it will raise."""
    if item is not None:
        try:
            value = value[int(item)] if item.isdigit() else value[item]
        except (KeyError, IndexError, TypeError):
            return PathError(f"feature path {path!r}: no item {item} in {_describe(value)}")
    if isinstance(value, Tensor):
        return value
    return PathError(f"feature path {path!r}: this is {_describe(value)}, no tensor; choose one with {name}[ITEM]")


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
        parts = [_move(each, device, memo) for each in value]
        moved = type(value)(*parts) if _is_named(value) else type(value)(parts)
    memo[id(value)] = moved
    return moved


def _is_named(value: Any) -> bool:
    return isinstance(value, tuple) and type(value) is not tuple and "_fields" in vars(type(value))


def _length(value: Any) -> int:
    """Samples in a value: a mapping or tuple bundles several inputs, a list holds one entry for each sample."""
    if isinstance(value, Mapping):
        return _length(next(iter(value.values())))
    if isinstance(value, tuple):
        return _length(value[0])
    return len(value)
