"""Which blocks of a compressed student are fitted one by one, and how far each is from the uncompressed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import islice

import torch
from torch import nn

from decoct.capture import Call, copied, recorded
from decoct.errors import PathError, RecipeError, did_you_mean
from decoct.models.modes import evaluating
from decoct.outputs import Batch, Needs
from decoct.steps.compressing.work import EVIDENCE_BATCHES
from decoct.steps.learning.lesson import Lesson
from decoct.training.blockwise import Block, Calls, first_tensor
from decoct.training.compression import Change

SHOWN, NAMED = 6, 3
Reference = Callable[[Batch], Calls]


def find_blocks(
    patterns: Sequence[str] | None, changes: Sequence[Change], original: nn.Module, at_work: Lesson
) -> dict[str, Block]:
    """The blocks that `patterns` name; None: each changed layer, or the nearest module around it that will do.

    A block will do that runs on what its original took and gives what that gave in shape. Heads are a matter of the
    whole attention, so that is the first to be tried for them. PathError for a pattern that names none; RecipeError
    with the reasons where a named one, or none, will do.
    """
    if patterns is not None and not patterns:
        raise RecipeError("blocks is empty; name modules, or say auto")
    student = at_work.student.module
    paths = [name for name, _ in student.named_modules() if name]
    asked = _matching(patterns, paths) if patterns is not None else _changed(changes, paths)
    wanted = asked if patterns is not None else list(dict.fromkeys(p for each in asked for p in _upwards(each)))
    with torch.no_grad(), evaluating(original, student):
        verdicts = dict(_tried(wanted, original, at_work))
    if patterns is not None:
        if refused := [f"{path}: {verdict}" for path, verdict in verdicts.items() if isinstance(verdict, str)]:
            raise RecipeError(f"blocks: {'; '.join(refused[:SHOWN])}")
        found = {path: verdict for path, verdict in verdicts.items() if isinstance(verdict, Block)}
    else:
        found = _nearest(asked, verdicts)
    return {path: found[path] for path in paths if path in found and not any(up in found for up in _above(path))}


def scaled(blocks: Mapping[str, Block], reference: Reference, at_work: Lesson) -> dict[str, Block]:
    """The blocks with the mean square of what each is to give, over a few training batches."""
    squares = {path: [0.0, 0] for path in blocks}
    for calls in _few(reference, at_work):
        for path in blocks:
            target = first_tensor(calls[path].output)
            squares[path][0] += float(target.double().square().sum())
            squares[path][1] += target.numel()
    return {path: replace(block, scale=(squares[path][0] / squares[path][1]) or 1.0) for path, block in blocks.items()}


def errors(blocks: Mapping[str, Block], reference: Reference, at_work: Lesson) -> dict[str, float]:
    """The error of each block in eval mode, the mean over a few training batches."""
    seen: dict[str, list[float]] = {path: [] for path in blocks}
    with torch.no_grad(), evaluating(at_work.student.module), at_work.engine.autocast():
        for calls in _few(reference, at_work):
            for path, block in blocks.items():
                seen[path].append(float(block.error(calls[path])))
    return {path: sum(each) / len(each) for path, each in seen.items()}


def _few(reference: Reference, at_work: Lesson) -> Iterator[Calls]:
    for batch in islice(iter(at_work.whole("all")), EVIDENCE_BATCHES):
        yield reference(at_work.engine.move(batch))


def _matching(patterns: Sequence[str], paths: Sequence[str]) -> list[str]:
    """The paths that are named, without what lies inside another one that is."""
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise PathError(f"blocks: no module {pattern!r}; {did_you_mean(pattern, paths)}")
    named = {path for path in paths if any(fnmatchcase(path, pattern) for pattern in patterns)}
    return [path for path in paths if path in named and not named & set(_above(path))]


def _changed(changes: Sequence[Change], paths: Sequence[str]) -> list[str]:
    """The layers that became smaller; of attention with fewer heads the module around its projections."""
    smaller = {each.path: each.kind for each in changes if each.before != each.after}
    begun = {path.rpartition(".")[0] or path if kind == "heads" else path for path, kind in smaller.items()}
    return [path for path in paths if path in begun]


def _above(path: str) -> Iterator[str]:
    """The paths around a path, the nearest first."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _upwards(path: str) -> list[str]:
    return [path, *_above(path)]


def _tried(paths: Sequence[str], original: nn.Module, at_work: Lesson) -> Iterator[tuple[str, Block | str]]:
    """Each path as a block, or why it is none, by running it alone on what the original took."""
    known = {name for name, _ in original.named_modules(remove_duplicate=False)}
    with recorded(original, [path for path in paths if path in known]) as calls:
        replace(at_work.student, module=original).forward(at_work.context.task, Needs())(at_work.batch)
    for path in paths:
        if path not in calls:
            yield path, "the uncompressed network does not have it, or does not run it"
        else:
            yield path, _try(original.get_submodule(path), at_work.student.module.get_submodule(path), calls[path])


def _try(original: nn.Module, module: nn.Module, call: Call) -> Block | str:
    try:
        wanted = first_tensor(call.output)
        again = first_tensor(original(*copied(call.args), **copied(call.kwargs)))
        produced = first_tensor(module(*copied(call.args), **copied(call.kwargs)))
    except (TypeError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), "")[:80]
        return f"alone it does not run on what its original took ({reason})"
    if produced.shape != wanted.shape:
        return f"it gives {tuple(produced.shape)}, its original {tuple(wanted.shape)}"
    if not torch.allclose(again, wanted, atol=1e-3, rtol=1e-3):
        return "its original gives something else when it runs alone"
    return Block(module)


def _nearest(changed: Sequence[str], verdicts: Mapping[str, Block | str]) -> dict[str, Block]:
    """For each changed layer the first module upwards that will do."""
    found: dict[str, Block] = {}
    refused = []
    for path in changed:
        for each in _upwards(path):
            verdict = verdicts[each]
            if isinstance(verdict, Block):
                found[each] = verdict
                break
        else:
            refused.append(path)
    if not found:
        more = f" and {len(refused) - NAMED} more" if len(refused) > NAMED else ""
        which = f" ({', '.join(refused[:NAMED])}{more})" if refused else ""
        raise RecipeError(
            f"layer_by_layer: blocks is auto, and no changed layer{which}, nor a module around one, keeps the shapes "
            "of what it takes and gives; name `blocks` that do, or use recover: after"
        )
    return found
