"""Structure of a network as the deltas from a fresh build of its Spec.

`describe` compares a module with a fresh build; `rebuild` replays what it found. A delta is a JSON object with `op`:

| op | meaning |
|---|---|
| untie | a module or tensor that the base shares gets a copy of its own |
| drop, none | a submodule is removed, or stands as None |
| new | a blank module of a class of CLASSES, filled by the deltas that follow |
| copy | a copy of another module of the base |
| tensor, drop_tensor | a parameter or buffer of another shape, dtype or kind, or none |
| set | plain attributes; `config.x` is the attribute x of the object `config` |
| alias, alias_tensor | a module or tensor that is shared |
| order | the order of submodules |
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from decoct.errors import CannotRebuild
from decoct.models.attention import SlimAttention
from decoct.models.clustered import ClusteredConv1d, ClusteredConv2d, ClusteredEmbedding, ClusteredLinear
from decoct.models.plain import as_dtype, decode, functions, plain_attributes, settings_objects
from decoct.models.repeat_heads import RepeatHeads

Delta = dict[str, Any]

CLASSES: dict[str, type[nn.Module]] = {
    each.__name__: each
    for each in (
        nn.Linear,
        nn.Bilinear,
        nn.Identity,
        nn.Conv1d,
        nn.Conv2d,
        nn.Conv3d,
        nn.ConvTranspose1d,
        nn.ConvTranspose2d,
        nn.ConvTranspose3d,
        nn.Embedding,
        nn.EmbeddingBag,
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.BatchNorm3d,
        nn.LayerNorm,
        nn.GroupNorm,
        nn.RMSNorm,
        nn.InstanceNorm1d,
        nn.InstanceNorm2d,
        nn.LocalResponseNorm,
        nn.ReLU,
        nn.ReLU6,
        nn.LeakyReLU,
        nn.PReLU,
        nn.ELU,
        nn.SELU,
        nn.CELU,
        nn.GELU,
        nn.SiLU,
        nn.Mish,
        nn.Sigmoid,
        nn.Tanh,
        nn.Softmax,
        nn.LogSoftmax,
        nn.Softplus,
        nn.Hardswish,
        nn.Hardsigmoid,
        nn.Hardtanh,
        nn.Dropout,
        nn.Dropout1d,
        nn.Dropout2d,
        nn.Dropout3d,
        nn.MaxPool1d,
        nn.MaxPool2d,
        nn.AvgPool1d,
        nn.AvgPool2d,
        nn.AdaptiveAvgPool1d,
        nn.AdaptiveAvgPool2d,
        nn.AdaptiveMaxPool1d,
        nn.AdaptiveMaxPool2d,
        nn.Flatten,
        nn.Unflatten,
        nn.Upsample,
        nn.ZeroPad2d,
        nn.ReflectionPad2d,
        nn.PixelShuffle,
        nn.LSTM,
        nn.GRU,
        nn.RNN,
        nn.Sequential,
        nn.ModuleList,
        nn.ModuleDict,
        RepeatHeads,
        ClusteredLinear,
        ClusteredConv1d,
        ClusteredConv2d,
        ClusteredEmbedding,
        SlimAttention,
    )
}
"""Classes that a module may be replaced by; their state is plain attributes, tensors and submodules."""


def describe(module: nn.Module, base: nn.Module) -> list[Delta]:
    """The deltas that turn `base`, a fresh build of the module's Spec, into the structure of `module`.

    Neither is changed. CannotRebuild names the module whose structure cannot be written down.

    >>> small, large = nn.Sequential(nn.Linear(2, 1)), nn.Sequential(nn.Linear(2, 3))
    >>> [delta["op"] for delta in describe(small, large)]
    ['tensor', 'tensor', 'set']
    """
    if type(module) is not type(base):
        raise CannotRebuild(f"the model is a {_class(module)}, its Spec builds a {_class(base)}")
    found = _Comparison(module, base)
    found.untie()
    found.visit("", module)
    found.alias()
    found.order()
    _check(module, found.work)
    return found.deltas


def rebuild(base: nn.Module, deltas: Sequence[Mapping[str, Any]]) -> nn.Module:
    """`base` itself, changed by the deltas of `describe`; tensors of new shapes are zero until weights are loaded."""
    origin = copy.deepcopy(base) if any(delta["op"] == "copy" for delta in deltas) else base
    for delta in deltas:
        _apply(base, delta, origin)
    _refresh(base)
    return base


class _Comparison:
    """A walk over a module beside a copy of its base, which takes on every delta at once."""

    def __init__(self, module: nn.Module, base: nn.Module) -> None:
        self.module, self.base, self.work = module, base, copy.deepcopy(base)
        self.deltas: list[Delta] = []
        self._seen: set[int] = {id(module)}
        self._objects: set[tuple[int, int]] = set()

    def add(self, **delta: Any) -> None:
        self.deltas.append(delta)
        _apply(self.work, delta, self.base)

    def untie(self) -> None:
        """Copies what the base shares and the module does not."""
        target = _modules(self.module)
        for name, first in _repeated(_modules(self.work)):
            mine = _modules(self.work)
            if mine.get(name) is mine.get(first) and name in target and target[name] is not target.get(first):
                self.add(op="untie", path=name)
        tensors = _tensors(self.module)
        for name, first in _repeated(_tensors(self.work)):
            held = _tensors(self.work)
            if held[name] is held[first] and name in tensors and tensors[name] is not tensors.get(first):
                self.add(op="untie", path=name)

    def visit(self, path: str, module: nn.Module) -> None:
        """Deltas of one module and of all below it."""
        mine = self.work.get_submodule(path)
        self._functions(path, module, mine)
        for name in [each for each in mine._modules if each not in module._modules]:
            self.add(op="drop", path=_join(path, name))
        self._compare_tensors(path, module, mine)
        for name, child in module._modules.items():
            self._child(_join(path, name), child, mine._modules.get(name, self))
        self._compare_attributes(path, module, mine)

    def _child(self, path: str, child: nn.Module | None, mine: Any) -> None:
        if child is None:
            if mine is not None:
                self.add(op="none", path=path)
            return
        if id(child) in self._seen:
            return
        self._seen.add(id(child))
        if type(mine) is not type(child):
            self._introduce(path, child)
        self.visit(path, child)

    def _introduce(self, path: str, child: nn.Module) -> None:
        """A module where the base has none, or one of another class."""
        kind = type(child)
        if CLASSES.get(kind.__name__) is kind:
            self.add(**{"op": "new", "path": path, "class": kind.__name__})
            return
        like = [name for name, each in self.base.named_modules() if name and type(each) is kind]
        if not like:
            raise CannotRebuild(
                f"{path}: a {_class(child)} cannot be written down; fold masks, parametrizations and quantizers into "
                f"plain layers first, or pass the model from Python (given)"
            )
        self.add(**{"op": "copy", "path": path, "from": path if path in like else like[0]})

    def _functions(self, path: str, module: nn.Module, mine: nn.Module) -> None:
        own, base = functions(module), functions(mine)
        for name, function in own.items():
            if base.get(name, function if name not in dir(type(module)) else None) != function:
                raise CannotRebuild(
                    f"{path or 'the model'}: its {name} was replaced by {function}, which cannot be written down"
                )

    def _compare_tensors(self, path: str, module: nn.Module, mine: nn.Module) -> None:
        wanted, present = _own_tensors(module), _own_tensors(mine)
        for name in present:
            if name not in wanted:
                self.add(op="drop_tensor", path=_join(path, name))
        for name, facts in wanted.items():
            if present.get(name) != facts:
                self.add(op="tensor", path=_join(path, name), **facts)

    def _compare_attributes(self, path: str, module: nn.Module, mine: nn.Module) -> None:
        changed = _changes(module, mine)
        objects = settings_objects(mine)
        for name, value in settings_objects(module).items():
            pair = (id(value), id(objects.get(name)))
            if type(objects.get(name)) is not type(value) or pair in self._objects:
                continue
            self._objects.add(pair)
            inner = _changes(value, objects[name])
            changed.update({f"{name}.{key}": each for key, each in inner.items()})
        if changed:
            self.add(op="set", path=path, attributes=changed)

    def alias(self) -> None:
        """Shares what the module shares."""
        for name, first in _repeated(_modules(self.module)):
            mine = _modules(self.work)
            if name not in mine or mine[name] is not mine[first]:
                self.add(op="alias", path=name, to=first)
        for name, first in _repeated(_tensors(self.module)):
            held = _tensors(self.work)
            if held.get(name) is not held[first]:
                self.add(op="alias_tensor", path=name, to=first)

    def order(self) -> None:
        """Puts submodules into the module's order, which a Sequential runs them in."""
        for path, each in self.module.named_modules():
            names = list(each._modules)
            if names != list(self.work.get_submodule(path)._modules):
                self.add(op="order", path=path, children=names)


def _apply(root: nn.Module, delta: Mapping[str, Any], origin: nn.Module) -> None:
    """One delta, in place."""
    op = delta["op"]
    if op in ("set", "order"):
        _apply_to_module(root.get_submodule(delta["path"]), delta)
        return
    parent_path, _, name = delta["path"].rpartition(".")
    parent = root.get_submodule(parent_path)
    if op in ("tensor", "drop_tensor", "alias_tensor"):
        _apply_to_tensor(root, parent, name, delta)
    elif op == "untie":
        held = parent._modules.get(name)
        if held is not None:
            parent._modules[name] = copy.deepcopy(held)
        else:
            _put_tensor(parent, name, copy.deepcopy(getattr(parent, name)), persistent=True)
    elif op == "drop":
        del parent._modules[name]
    elif op == "none":
        _put_module(parent, name, None)
    elif op == "new":
        blank = CLASSES[delta["class"]].__new__(CLASSES[delta["class"]])
        nn.Module.__init__(blank)
        _put_module(parent, name, blank)
    elif op == "copy":
        _put_module(parent, name, copy.deepcopy(origin.get_submodule(delta["from"])))
    elif op == "alias":
        _put_module(parent, name, root.get_submodule(delta["to"]))
    else:
        raise CannotRebuild(f"unknown delta {op!r}; this artifact was made by another version of decoct")


def _apply_to_module(module: nn.Module, delta: Mapping[str, Any]) -> None:
    if delta["op"] == "order":
        children = {name: module._modules[name] for name in delta["children"]}
        module._modules.clear()
        module._modules.update(children)
        return
    for key, value in delta["attributes"].items():
        holder, _, name = key.rpartition(".")
        owner = vars(module)[holder] if holder else module
        assert not name.startswith("__"), name
        if value == {"absent": True}:
            vars(owner).pop(name, None)
        else:
            vars(owner)[name] = decode(value)


def _apply_to_tensor(root: nn.Module, parent: nn.Module, name: str, delta: Mapping[str, Any]) -> None:
    persistent = delta.get("persistent", True)
    tensor: Tensor | None = None
    if delta["op"] == "alias_tensor":
        path, _, leaf = delta["to"].rpartition(".")
        tensor = getattr(root.get_submodule(path), leaf)
        persistent = name not in parent._non_persistent_buffers_set
    elif delta["op"] == "tensor" and delta["shape"] is not None:
        dtype = as_dtype(delta["dtype"])
        tensor = torch.zeros(delta["shape"], dtype=dtype)
        if delta["kind"] == "parameter":
            tensor = nn.Parameter(tensor, requires_grad=dtype.is_floating_point or dtype.is_complex)
    if delta["op"] == "drop_tensor":
        delattr(parent, name)
    elif delta.get("kind") == "parameter" and tensor is None:
        _forget(parent, name)
        parent.register_parameter(name, None)
    else:
        _put_tensor(parent, name, tensor, persistent=persistent)


def _put_tensor(parent: nn.Module, name: str, tensor: Tensor | None, *, persistent: bool) -> None:
    if isinstance(tensor, nn.Parameter) and name in parent._parameters:
        parent._parameters[name] = tensor
        return
    _forget(parent, name)
    if isinstance(tensor, nn.Parameter):
        parent.register_parameter(name, tensor)
    else:
        parent.register_buffer(name, tensor, persistent=persistent)


def _put_module(parent: nn.Module, name: str, module: nn.Module | None) -> None:
    if name not in parent._modules:
        _forget(parent, name)
    parent._modules[name] = module


def _forget(parent: nn.Module, name: str) -> None:
    for table in (vars(parent), parent._parameters, parent._buffers, parent._modules):
        table.pop(name, None)
    parent._non_persistent_buffers_set.discard(name)


def _refresh(root: nn.Module) -> None:
    """Lets recurrent layers find their weights again."""
    for module in root.modules():
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()


def _own_tensors(module: nn.Module) -> dict[str, dict[str, Any]]:
    facts = {name: _facts(each, "parameter", True) for name, each in module._parameters.items()}
    for name, each in module._buffers.items():
        facts[name] = _facts(each, "buffer", name not in module._non_persistent_buffers_set)
    return facts


def _facts(tensor: Tensor | None, kind: str, persistent: bool) -> dict[str, Any]:
    shape = None if tensor is None else list(tensor.shape)
    dtype = None if tensor is None else str(tensor.dtype).removeprefix("torch.")
    return {"kind": kind, "shape": shape, "dtype": dtype, "persistent": persistent}


def _modules(root: nn.Module) -> dict[str, nn.Module]:
    return dict(root.named_modules(remove_duplicate=False))


def _tensors(root: nn.Module) -> dict[str, Tensor]:
    found: dict[str, Tensor] = dict(root.named_parameters(remove_duplicate=False))
    found.update(root.named_buffers(remove_duplicate=False))
    return found


def _repeated(table: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Each further name of an object, with its first name."""
    first: dict[int, str] = {}
    for name, each in table.items():
        if first.setdefault(id(each), name) != name:
            yield name, first[id(each)]


def _changes(owner: object, base: object) -> dict[str, Any]:
    """Plain attributes that differ; those that are gone are marked."""
    wanted, present = plain_attributes(owner), plain_attributes(base)
    changed = {name: value for name, value in wanted.items() if name not in present or present[name] != value}
    return {**changed, **{name: {"absent": True} for name in present if name not in vars(owner)}}


def _check(module: nn.Module, work: nn.Module) -> None:
    wanted = {name: (each.shape, each.dtype) for name, each in _tensors(module).items()}
    present = {name: (each.shape, each.dtype) for name, each in _tensors(work).items()}
    for name in (*wanted, *present):
        if wanted.get(name) != present.get(name):
            raise CannotRebuild(f"{name}: its structure cannot be written down")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _class(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
