"""`capture`, `recorded` and `headless`: the only hooks in the house."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from decoct.errors import PathError, did_you_mean

_PATH = re.compile(
    r"^(?P<module>[^\[\]#@]*)(?:#(?P<call>\d+))?(?:@(?P<part>input|weight|bias))?(?:\[(?P<item>[^\[\]]+)\])?$"
)


EVERY = "*"
"""The feature path that stands for every layer."""


class Path(NamedTuple):
    """A feature path: a module, the number of its call, the item of what it gave; or another part of it.

    `part`: "input", what the module took; "weight" or "bias", its parameter; None, what it gave.
    """

    module: str
    call: int
    item: str | None
    part: str | None


def split_path(path: str) -> Path:
    """The parts of a feature path.

    >>> split_path("encoder.layer.3[0]")
    Path(module='encoder.layer.3', call=0, item='0', part=None)
    >>> split_path("shared#1@input")
    Path(module='shared', call=1, item=None, part='input')
    """
    match = _PATH.match(path)
    if match is None:
        raise PathError(
            f"feature path {path!r}: write module.path, module.path#CALL, module.path[ITEM] or module.path@input "
            "(@weight, @bias)"
        )
    return Path(match["module"], int(match["call"] or 0), match["item"], match["part"])


def find_module(model: nn.Module, path: str) -> nn.Module:
    """The submodule at `path`, by any of its names; PathError names the nearest right ones."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    raise PathError(f"{type(model).__name__} has no module {path!r}; {did_you_mean(path, names)}")


class Captured(Mapping[str, Tensor]):
    """What `capture` saw: a mapping from the paths asked for to the outputs of their modules.

    A feature is what the module returned (or took), also where a later operation changes that tensor in place
    (`x += shortcut`, an in-place ReLU): the first time in a mode (training or eval) it is copied; where it then proves
    untouched in that mode, never again.
    """

    def __init__(self, model: nn.Module, paths: Sequence[str]) -> None:
        self._model = model
        self._every = EVERY in paths
        if self._every:
            paths = [*paths, *_every(model)]
        self._paths = {path: split_path(path) for path in dict.fromkeys(paths) if path != EVERY}
        self._found: dict[str, Tensor | PathError] = {
            text: _parameter(model, text, path) for text, path in self._paths.items() if path.part in ("weight", "bias")
        }
        self._calls = {path.module: 0 for path in self._paths.values()}
        self._watched: list[tuple[str, nn.Module, Tensor, int, _Modes]] = []
        self._gradients = torch.is_grad_enabled()

    def __getitem__(self, path: str) -> Tensor:
        name = self._paths[path].module
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
        return iter(self._layers() if self._every else self._paths)

    def __len__(self) -> int:
        return len(self._layers() if self._every else self._paths)

    def _layers(self) -> list[str]:
        """The paths that hold a tensor, of modules called once; of a module's output and its first item the former."""
        kept: dict[str, str] = {}
        for path, value in self._found.items():
            if isinstance(value, Tensor) and self._calls[self._paths[path].module] == 1:
                kept.setdefault(self._paths[path].module, path)
        return list(kept.values())

    def hooks(self) -> Iterator[tuple[str, Callable[[nn.Module, Any, Any], None]]]:
        """Module paths, and the forward hook of each, which keeps what was asked for and nothing else."""
        for name in self._calls:
            wanted = [(text, path) for text, path in self._paths.items() if path.module == name and path.part is None]
            yield name, self._keeper(name, wanted)

    def pre_hooks(self) -> Iterator[tuple[str, Callable[[nn.Module, Any], None]]]:
        """Module paths whose inputs are asked for, and the hook of each that runs before the module."""
        for name in self._calls:
            wanted = [
                (text, path) for text, path in self._paths.items() if path.module == name and path.part == "input"
            ]
            if wanted:
                yield name, self._taker(name, wanted)

    def _keeper(self, name: str, wanted: Sequence[tuple[str, Path]]) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            for text, path in wanted:
                if path.call == self._calls[name]:
                    self._found[text] = self._kept(text, module, _pick(text, name, path.item, output), _CHANGED)
            self._calls[name] += 1

        return keep

    def _taker(self, name: str, wanted: Sequence[tuple[str, Path]]) -> Callable[[nn.Module, Any], None]:
        def take(module: nn.Module, args: Any) -> None:
            for text, path in wanted:
                if path.call == self._calls[name]:
                    value = _pick(text, f"{name}@input", path.item or "0", args)
                    self._found[text] = self._kept(text, module, value, _CHANGED_INPUTS)

        return take

    def _kept(self, path: str, module: nn.Module, value: Tensor | PathError, changed: _Changes) -> Tensor | PathError:
        if not isinstance(value, Tensor):
            return value
        if self._gradients and not value.requires_grad and not torch.compiler.is_compiling():
            kept = value.clone()  # one that is kept as it is may be a batch's own
            _WITHOUT[kept] = _reason(module, inputs=changed is _CHANGED_INPUTS)
            return kept
        if value.is_inference() or torch.compiler.is_compiling():
            return value.clone()
        modes = (self._model.training, module.training)
        self._watched.append((path, module, value, value._version, modes))
        return value.clone() if changed.get(module, {}).get(modes, True) else value

    def settle(self) -> None:
        """Learns from a finished forward pass which tensors are changed in place after they were seen."""
        for path, module, value, version, modes in self._watched:
            known = _CHANGED_INPUTS if self._paths[path].part == "input" else _CHANGED
            changed = value._version != version
            if changed and self._found[path] is value:
                self._found[path] = PathError(f"feature path {path!r}: changed in place in this pass and not before it")
            seen = known.setdefault(module, {})
            seen[modes] = changed or seen.get(modes, False)
        self._watched.clear()


def _parameter(model: nn.Module, text: str, path: Path) -> Tensor | PathError:
    names = dict(find_module(model, path.module).named_parameters(recurse=False))
    assert path.part is not None
    return names.get(path.part, PathError(f"feature path {text!r}: it has the parameters {', '.join(names) or 'none'}"))


def _every(model: nn.Module) -> list[str]:
    names = [name for name, _ in model.named_modules() if name]
    return [path for name in names for path in (name, f"{name}[0]")]


_Modes = tuple[bool, bool]
"""Whether the model, and whether the module itself, is in training mode."""


_Changes = WeakKeyDictionary[nn.Module, dict[_Modes, bool]]


_CHANGED: _Changes = WeakKeyDictionary()
"""Whether what follows a module changes its output in place, for modules that were captured before, by mode: a dropout
that works in place does so in training alone."""


_CHANGED_INPUTS: _Changes = WeakKeyDictionary()
"""The same of what modules take, which they themselves may change."""


_WITHOUT = WeakTensorKeyDictionary()
"""Why features have no gradient that were captured where gradients were on."""


def why_no_gradient(feature: Tensor) -> str | None:
    """Why a captured feature has no gradient, and what to do; None for what no pass with gradients captured."""
    found: str | None = _WITHOUT.get(feature)
    return found


CUT_OFF = (
    "it was detached before, or all layers before it are frozen; choose a later layer, unfreeze one before it, or let "
    "the forward pass keep the gradient"
)


def _reason(module: nn.Module, *, inputs: bool) -> str:
    if not torch.is_grad_enabled():
        if _checkpointed():
            return (
                "it runs inside reentrant activation checkpointing, which computes it without gradients; give "
                "use_reentrant=False to torch.utils.checkpoint (transformers: gradient_checkpointing_kwargs="
                "{'use_reentrant': False}), or choose the layer that is checkpointed as a whole"
            )
        return "its forward pass runs under torch.no_grad(); choose a layer outside of it, or take that away"
    parameters = [] if inputs else list(module.parameters())
    if any(each.requires_grad for each in parameters):
        return (
            "it is cut off from its own parameters inside (.detach(), .data, torch.no_grad(), reentrant checkpointing "
            "of inputs without gradients); choose another layer, or take that away"
        )
    if parameters:
        return "its parameters and all before them are frozen; choose a later layer, or unfreeze some of them"
    return CUT_OFF


def _checkpointed() -> bool:
    """Whether the code that runs was called by something that checkpoints activations."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name == "forward" and "checkpoint" in os.path.basename(code.co_filename):  # CheckpointFunction
            return True
        frame = frame.f_back
    return False


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
        for name, take in found.pre_hooks():
            handles.append(find_module(model, name).register_forward_pre_hook(take))
        yield found
        found.settle()
    finally:
        for handle in handles:
            handle.remove()


class Call(NamedTuple):
    """One call of a module: copies of what it took and of what it gave."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any


@contextmanager
def recorded(model: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, Call]]:
    """Collects the first call of each module at `paths` while the body runs the model, with all its arguments.

    PathError for a path that the model lacks; a module that was not called is not among the calls.

    >>> with recorded(nn.Sequential(nn.ReLU()), ["0"]) as calls:
    ...     pass
    >>> calls
    {}
    """
    calls: dict[str, Call] = {}
    handles = []
    try:
        for path in dict.fromkeys(paths):
            take, keep = _recorder(path, calls)
            module = find_module(model, path)
            handles.append(module.register_forward_pre_hook(take, with_kwargs=True))
            handles.append(module.register_forward_hook(keep))
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _recorder(path: str, calls: dict[str, Call]) -> tuple[Callable[..., None], Callable[..., None]]:
    waiting: list[tuple[Any, Any]] = []

    def take(module: nn.Module, args: Any, kwargs: Any) -> None:
        if path not in calls and not waiting:
            waiting.append((copied(args), copied(kwargs)))

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        if path not in calls:
            calls[path] = Call(*waiting[0], copied(output))

    return take, keep


class Headless:
    """What `headless` kept: `hidden` `[*B, D]`, what went into the head, and its `weight` `[V, D]` and `bias` `[V]`.

    PathError where the head was not called, more than once, or is spread over processes after the pass.
    """

    def __init__(self, model: nn.Module, path: str) -> None:
        self._path, self._head = path, find_module(model, path)
        if type(self._head).forward is not nn.Linear.forward or "forward" in vars(self._head):
            raise PathError(
                f"{path} is a {type(self._head).__name__}, and its logits may be more than hidden · weightᵀ + bias; "
                "ask for them written out"
            )
        self._calls: list[Tensor] = []
        self._after: tuple[Tensor, Tensor | None] | None = None

    @property
    def hidden(self) -> Tensor:
        """`[*B, D]`, as the model passed it."""
        if len(self._calls) != 1:
            raise PathError(f"{self._path}: the head was called {len(self._calls)} times in this pass; expected: once")
        return self._calls[0]

    @property
    def weight(self) -> Tensor:
        """`[V, D]`, as it was when the pass had ended."""
        return self._parameters()[0]

    @property
    def bias(self) -> Tensor | None:
        """`[V]`, or None, as it was when the pass had ended."""
        return self._parameters()[1]

    def take(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        """Keeps what goes into the head, and lets it work on no row."""
        if not args or not isinstance(args[0], Tensor):
            raise PathError(f"{self._path}: the head was called without a tensor in its first place")
        self._calls.append(args[0])
        return (args[0].reshape(-1, args[0].shape[-1])[:0],)

    def give(self, module: nn.Module, args: Any, output: Any) -> Tensor:
        """`[*B, 0]` in place of logits, with a way back to what went in."""
        return self._calls[-1][..., :0]

    def settle(self) -> None:
        """Reads the head: before the pass its weight may be a part of a sharded one, whose gradient would be lost."""
        weight, bias = self._head.weight, self._head.bias
        assert isinstance(weight, Tensor)
        if _is_shard(weight):
            raise PathError(
                f"{self._path}: its weight is spread over processes again when the pass has ended, as it lies in a "
                "block that is sharded by itself; ask for logits written out"
            )
        self._after = weight, bias if isinstance(bias, Tensor) else None

    def _parameters(self) -> tuple[Tensor, Tensor | None]:
        if self._after is None:
            raise PathError(f"{self._path}: the head is read when the pass has ended")
        return self._after


@contextmanager
def headless(model: nn.Module, path: str) -> Iterator[Headless]:
    """Keeps what goes into the linear layer at `path` while the body runs the model, and multiplies nothing out.

    The layer is still called, so that its other hooks run; what the model goes on with has no columns, `[*B, 0]`. What
    the model does to logits after the head (a scale, a soft cap) is then left to be done. PathError where the module
    is no plain linear layer.

    >>> model = nn.Sequential(nn.ReLU(), nn.Linear(2, 3))
    >>> with headless(model, "1") as found:
    ...     empty = model(torch.ones(4, 2))
    >>> empty.shape, found.hidden.shape, found.weight is model[1].weight
    (torch.Size([4, 0]), torch.Size([4, 2]), True)
    """
    found = Headless(model, path)
    head = find_module(model, path)
    handles = [head.register_forward_pre_hook(found.take), head.register_forward_hook(found.give)]
    try:
        yield found
        found.settle()
    finally:
        for handle in handles:
            handle.remove()


def _is_shard(tensor: Tensor) -> bool:
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def copied(value: Any) -> Any:
    """The same with a copy of each tensor in it.

    >>> copied((torch.ones(1), None))
    (tensor([1.]), None)
    """
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: copied(each) for key, each in value.items()}
    if type(value) in (tuple, list):
        return type(value)(copied(each) for each in value)
    return value


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
