"""Layers shared across depth."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from decoct.errors import PathError, RecipeError, did_you_mean
from decoct.models.plain import plain_attributes
from decoct.training.compression import Change, Compressed, Evidence, Scheme, protected

Count = Annotated[int, Field(ge=1)]


class SharedLayers(Scheme):
    """Lets blocks of equal shape use the same weights.

    `groups`: how many different blocks each stack of equal ones keeps, neighbours sharing; or the groups themselves, as
    lists of paths. `how`: the shared weights are the mean of a group, or those of its first block. Stacks are the
    blocks of equal class and shape in one Sequential or ModuleList: encoder layers, residual blocks. Each block keeps
    its own batch norms, whose statistics differ with depth. Lan et al. 2020, "ALBERT".
    """

    use: ClassVar[str] = "layers"

    groups: Count | tuple[tuple[str, ...], ...] = 1
    how: Literal["mean", "first"] = "mean"

    def apply(self, module: nn.Module, evidence: Evidence) -> Compressed:
        made = copy.deepcopy(module)
        kept = protected(made, self.protect)
        changes: list[Change] = []
        shared = False
        for path, parts in self._groups(made, kept):
            for part in parts:
                self._share(made, part)
            shared = shared or any(len(part) > 1 for part in parts)
            blocks = sum(len(part) for part in parts)
            note = "" if blocks > len(parts) else f"stays: it has no more than {len(parts)} blocks of equal shape"
            changes.append(Change(path, "layers", blocks, len(parts), note))
        if not shared:
            reasons = "; ".join(f"{each.path} {each.note}" for each in changes)
            why = reasons or "there are no two blocks of equal class and shape in one Sequential or ModuleList"
            raise RecipeError(f"{type(module).__name__}: groups is {self.groups} and nothing can be shared: {why}")
        return Compressed(made, tuple(changes))

    def _groups(self, root: nn.Module, kept: set[str]) -> Iterator[tuple[str, list[list[str]]]]:
        """Where, and the blocks of each group by path."""
        if isinstance(self.groups, tuple):
            for path in (path for each in self.groups for path in each):
                if _touched(path, kept):
                    raise RecipeError(f"groups names {path}, and protect keeps it or a part of it; drop one of the two")
            yield "groups", [list(each) for each in self.groups]
            return
        for path, stack in _stacks(root, kept):
            yield path, _parts(stack, self.groups)

    def _share(self, root: nn.Module, paths: Sequence[str]) -> None:
        names = [name for name, _ in root.named_modules()]
        for path in paths:
            if path not in names:
                raise PathError(f"groups: no module {path!r}; {did_you_mean(path, names)}")
        blocks = [root.get_submodule(path) for path in paths]
        for path, block in zip(paths[1:], blocks[1:]):
            if _shape(block) != _shape(blocks[0]):
                raise RecipeError(
                    f"groups: {path} and {paths[0]} differ in class, shape or settings; group equal blocks"
                )
        for name, first in list(blocks[0].named_modules()):
            if not isinstance(first, _BatchNorm):
                self._tie([block.get_submodule(name) for block in blocks])

    def _tie(self, modules: Sequence[nn.Module]) -> None:
        first = modules[0]
        for name, parameter in first._parameters.items():
            if parameter is None:
                continue
            members = [_there(each._parameters[name]) for each in modules]
            if self.how == "mean":
                with torch.no_grad():
                    parameter.copy_(torch.stack([each.double() for each in members]).mean(0))
            for each in modules[1:]:
                each._parameters[name] = parameter
            _refresh(modules[1:])
        for name, buffer in first._buffers.items():
            for each in modules[1:]:
                if buffer is not None and torch.equal(_there(each._buffers[name]), buffer):
                    each._buffers[name] = buffer


def _refresh(modules: Sequence[nn.Module]) -> None:
    """Lets recurrent layers find their weights again."""
    for each in modules:
        if isinstance(each, nn.RNNBase):
            each._init_flat_weights()


def _there(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _stacks(root: nn.Module, kept: set[str]) -> Iterator[tuple[str, list[str]]]:
    """Containers, and the paths of their blocks of equal shape; containers inside a stack are left out."""
    inside: list[str] = []
    for path, module in root.named_modules():
        if any(path.startswith(f"{each}.") for each in inside):
            continue
        if not isinstance(module, nn.Sequential | nn.ModuleList):
            continue
        alike: dict[Any, list[str]] = {}
        for name, child in module.named_children():
            here = f"{path}.{name}" if path else name
            if not _touched(here, kept) and list(child.children()) and any(True for _ in child.parameters()):
                alike.setdefault(_shape(child), []).append(here)
        for stack in alike.values():
            if len(stack) > 1:
                inside += stack
                yield path, stack


def _touched(path: str, kept: set[str]) -> bool:
    """Whether a block or a part of it is protected."""
    return path in kept or any(each.startswith(f"{path}.") for each in kept)


def _parts(stack: Sequence[str], groups: int) -> list[list[str]]:
    """Neighbours in `groups` parts of nearly equal size.

    >>> _parts("abcde", 2)
    [['a', 'b', 'c'], ['d', 'e']]
    """
    count = min(groups, len(stack))
    size, more = divmod(len(stack), count)
    ends = [size * (i + 1) + min(i + 1, more) for i in range(count)]
    return [list(stack[a:b]) for a, b in zip([0, *ends], ends)]


def _shape(block: nn.Module) -> tuple[str, ...]:
    """Classes, settings and shapes of a block and all below it; buffers other than batch norms' by value."""
    found = []
    for name, each in block.named_modules():
        settings = {key: value for key, value in plain_attributes(each).items() if key != "layer_idx"}
        tensors = {key: tuple(t.shape) for key, t in each._parameters.items() if t is not None}
        own = {} if isinstance(each, _BatchNorm) else each._buffers
        fixed = {key: b.tolist() for key, b in own.items() if b is not None and not b.is_floating_point()}
        found.append(f"{name} {type(each).__qualname__} {settings} {tensors} {fixed}")
    return tuple(found)
