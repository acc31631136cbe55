"""Layers: whole blocks removed."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from decoct.capture import Captured, capture
from decoct.errors import PathError, RecipeError
from decoct.models.modes import evaluating
from decoct.pruning._checked import problem_of, shapes
from decoct.pruning._rounds import InRounds
from decoct.pruning._scores import gradients, weakest
from decoct.training.compression import Change, Compressed, Evidence, protected


class Layers(InRounds):
    """Removes whole blocks whose output has the shape of their input: encoder layers, residual blocks.

    `ratio`: the share of the blocks that goes; one stays at least. `score`: output (the distance of a block's output
    from its input, relative to the input: what changes least goes), taylor (the sum of |weight times gradient|), even
    (evenly spaced, first and last stay). Blocks are of one class in one list or sequence of the network.
    Sajjad et al. 2023; Men et al. 2024.
    """

    use: ClassVar[str] = "layers"
    positional: ClassVar[tuple[str, ...]] = ("ratio",)
    score: Literal["output", "taylor", "even"] = "output"

    def apply(self, module: nn.Module, evidence: Evidence) -> Compressed:
        keep = protected(module, self.protect)
        blocks = _blocks(module, evidence)
        free = [path for path in blocks if path not in keep]
        went = max(0, len(self.rounds.sizes) - len(blocks)) if self.rounds and self.begun else 0
        count = min(len(free), len(blocks) - 1, int((len(blocks) + went) * self.ratio + 0.5) - went)
        if count < 1 and not went and not (self.waits and free and len(blocks) > 1):
            raise RecipeError(
                f"layers: nothing can go at ratio {self.ratio:g}: {len(blocks)} blocks of equal input and output, "
                f"{len(blocks) - len(free)} of them protected; use the scheme channels, or raise ratio"
            )
        gone = set(self._gone(module, evidence, blocks, free, count)) if count > 0 else set()
        work = _without(copy.deepcopy(module), gone)
        problem = problem_of(work, evidence, shapes(module, evidence))
        if problem is not None:
            raise RecipeError(
                f"layers: without {', '.join(sorted(gone))} the network does not run ({problem}): its code names a "
                "block that goes; protect these blocks, or use the scheme channels"
            )
        changes = [Change(path, "layers", 1, int(path not in gone), _note(path, keep)) for path in blocks]
        return Compressed(work, tuple(changes))

    def _gone(
        self, module: nn.Module, evidence: Evidence, blocks: Sequence[str], free: Sequence[str], count: int
    ) -> list[str]:
        if self.score == "even":
            at = np.linspace(0, len(blocks) - 1, len(blocks) - count).round().astype(int)
            stay = {blocks[i] for i in at} | (set(blocks) - set(free))
            gone = [path for path in free if path not in stay]
            if len(gone) >= count:
                return gone[:count]
            at = np.linspace(0, len(free) - 1, len(free) - count).round().astype(int)  # protected blocks are in the way
            return [path for i, path in enumerate(free) if i not in at]
        if self.score == "taylor":
            scores = _taylor(module, evidence, free)
        else:
            scores = _distances(module, evidence, free)
        return [free[i] for i in weakest(scores, count)]


def _note(path: str, keep: Collection[str]) -> str:
    return "protected" if path in keep else ""


def _blocks(module: nn.Module, evidence: Evidence) -> list[str]:
    """Paths of modules in a list or sequence, with parameters, whose output has the shape of their input."""
    candidates = [
        f"{path}.{name}" if path else name
        for path, parent in module.named_modules()
        if isinstance(parent, nn.ModuleList | nn.Sequential)
        for name, child in parent.named_children()
        if any(True for _ in child.children()) and any(True for _ in child.parameters())
    ]
    seen = _seen(module, evidence, candidates)
    alike = defaultdict(list)
    kinds = {path: type(module.get_submodule(path)) for path in candidates}
    for path in candidates:
        pair = _pair(seen, path)
        if pair is not None and pair[0].shape == pair[1].shape:
            alike[kinds[path]].append(path)
    inner = {path for paths in alike.values() for path in paths}
    return [path for path in candidates if path in inner and not any(path.startswith(f"{each}.") for each in inner)]


def _seen(module: nn.Module, evidence: Evidence, paths: Sequence[str]) -> Captured:
    wanted = [text for path in paths for text in (path, f"{path}[0]", f"{path}@input")]
    with torch.no_grad(), evaluating(module), capture(module, wanted) as found:
        evidence.run(module)
    return found


def _pair(seen: Captured, path: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What a block took and gave; None where it was not called or gave no tensor."""
    try:
        taken = seen[f"{path}@input"]
    except PathError:
        return None
    for text in (path, f"{path}[0]"):
        try:
            return taken, seen[text]
        except PathError:
            continue
    return None


def _distances(module: nn.Module, evidence: Evidence, paths: Sequence[str]) -> np.ndarray:
    seen = _seen(module, evidence, paths)
    found = []
    for path in paths:
        pair = _pair(seen, path)
        assert pair is not None
        taken, given = (each.double() for each in pair)
        found.append(float((given - taken).norm() / taken.norm().clamp(min=1e-30)))
    return np.array(found)


def _taylor(module: nn.Module, evidence: Evidence, paths: Sequence[str]) -> np.ndarray:
    parameters = dict(module.named_parameters())
    total = np.zeros(len(paths))
    every = gradients(module, evidence, "score taylor")
    for found in every:
        for i, path in enumerate(paths):
            mine = [name for name in found if name.startswith(f"{path}.")]
            total[i] += sum(float((parameters[name].detach() * found[name]).abs().sum()) for name in mine)
    return total / len(every)


def _without(module: nn.Module, gone: Collection[str]) -> nn.Module:
    """The module without these children of lists and sequences, in place; configs learn the number that is left."""
    counts: dict[int, int] = {}
    for path in gone:
        parent, _, name = path.rpartition(".")
        holder = module.get_submodule(parent)
        counts.setdefault(id(holder), len(holder._modules))
        del holder._modules[name]
    for holder in module.modules():
        if id(holder) in counts and isinstance(holder, nn.ModuleList):
            left = list(holder._modules.values())
            holder._modules.clear()
            holder._modules.update({str(i): each for i, each in enumerate(left)})
            for each in module.modules():
                config: Any = vars(each).get("config")
                for name in ("num_hidden_layers", "n_layers"):
                    if config is not None and vars(config).get(name) == counts[id(holder)]:
                        setattr(config, name, len(left))
    return module
