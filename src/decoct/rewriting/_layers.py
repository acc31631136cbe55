"""Which layers a rewriting touches, how it puts others in their place, and what it reports."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from decoct.errors import PathError, RecipeError, did_you_mean
from decoct.models.modes import evaluating, training_branches
from decoct.spec import Spec
from decoct.training.compression import Change, Compressed, Evidence, protected

OTHER_FAILURES = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)
"""What a forward pass raises in training that wants more than the few samples (targets, larger batches)."""
SHOWN = 6
"""Reasons that an error names before it counts the rest."""


@dataclass(frozen=True)
class Rewritten:
    """What takes a layer's place; `before` and `after` in the scheme's unit."""

    module: nn.Module
    before: int
    after: int
    note: str = ""


@dataclass(frozen=True)
class Kept:
    """A layer that stays, and why; `done` where it is as small as is asked for already."""

    size: int
    why: str
    done: bool = False


def named(module: nn.Module, patterns: Sequence[str]) -> set[str]:
    """Paths of the modules that `patterns` name, with all below them; PathError for a pattern that names none."""
    paths = [name for name, _ in module.named_modules() if name]
    found: set[str] = set()
    for pattern in patterns:
        tops = [path for path in paths if fnmatchcase(path, pattern)]
        if not tops:
            raise PathError(f"layers: no module {pattern!r}; {did_you_mean(pattern, paths)}")
        found |= {path for path in paths for top in tops if path == top or path.startswith(f"{top}.")}
    return found


def chosen(
    module: nn.Module, layers: Sequence[str], protect: Sequence[str]
) -> tuple[list[tuple[str, nn.Module]], set[str]]:
    """Paths and modules that `layers` names, in order, and which of all modules are protected."""
    wanted, safe = named(module, layers), protected(module, protect)
    return [(path, each) for path, each in module.named_modules() if path in wanted], safe


def tied(module: nn.Module) -> set[int]:
    """Ids of the parameters that several modules hold."""
    counts = Counter(id(each) for part in module.modules() for each in part._parameters.values() if each is not None)
    return {key for key, count in counts.items() if count > 1}


def put_in_place(
    scheme: Spec, module: nn.Module, found: Mapping[str, Rewritten | Kept], kind: str, evidence: Evidence
) -> Compressed:
    """A copy with every Rewritten in its place, which must still run; RecipeError with the reasons where there is none.

    Where an earlier round did all there is to do, the copy is as it was. A module that stands in several places is
    replaced in all of them.
    """
    changes = tuple(_change(path, kind, each) for path, each in found.items())
    new = {path: each.module for path, each in found.items() if isinstance(each, Rewritten)}
    if not new and not any(isinstance(each, Kept) and each.done for each in found.values()):
        raise RecipeError(f"{scheme.use}: nothing to rewrite{_reasons(found)}")
    work = copy.deepcopy(module)
    for path, layer in new.items():
        old = work.get_submodule(path)
        layer.train(old.training)
        for parent in list(work.modules()):
            for name, child in parent._modules.items():
                if child is old:
                    parent._modules[name] = layer
    _must_run(scheme, work, evidence, list(new))
    return Compressed(work, changes)


def _change(path: str, kind: str, each: Rewritten | Kept) -> Change:
    if isinstance(each, Kept):
        return Change(path, kind, each.size, each.size, each.why)
    return Change(path, kind, each.before, each.after, each.note)


def _reasons(found: Mapping[str, Rewritten | Kept]) -> str:
    texts = [f"{path}: {each.why}" for path, each in found.items() if isinstance(each, Kept)]
    if not texts:
        return ": the chosen layers hold none that this scheme knows; see `layers`"
    more = f"; and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ". " + "; ".join(texts[:SHOWN]) + more


def _must_run(scheme: Spec, work: nn.Module, evidence: Evidence, paths: list[str]) -> None:
    """RecipeError where the network reads what the replaced layers no longer have, as their weight."""
    try:
        with torch.no_grad(), evaluating(work):
            evidence.run(work)
        with torch.no_grad(), contextlib.suppress(*OTHER_FAILURES), training_branches(work):
            evidence.run(work)
    except AttributeError as error:
        raise RecipeError(
            f"{scheme.use}: the network does not run with {', '.join(paths[:SHOWN])} replaced, for its code reads into "
            f"a layer directly ({error}); protect these layers"
        ) from error
