"""Keeping: the layers that stay in float because that is faster on this machine, kind by kind, by timing files."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decoct.quantization.base import Feeds, Judge, Quantization, Quantized
from decoct.quantization.kinds import kinds_of
from decoct.steps.shipping.speed import Feed, Timer, timed
from decoct.targets.onnx import FILE, save

if TYPE_CHECKING:
    import onnx

GAIN = 0.97
"""Kinds stay in float where that takes less than so much of the time; a file in integers may be as much slower than the
float file as this is below 1, since it is smaller."""
PROTECTED, FASTER = "protected", "kept in float: faster on this machine"
TABLES = "embeddings"


@dataclass(frozen=True)
class Kept:
    """What timing showed: the kinds that stay in float, and milliseconds of one call of the float file, the file all in
    integers and the chosen one."""

    kinds: Mapping[str, Sequence[str]]
    float_ms: float
    integers_ms: float
    file_ms: float
    whole: bool = False
    """Whether everything stays in float, since integers are faster in no way that was tried."""

    def data(self) -> dict[str, Any]:
        """As it stands in the facts of a quantization."""
        milliseconds = {name: getattr(self, name) for name in ("float_ms", "integers_ms", "file_ms")}
        return {"kinds": {name: list(paths) for name, paths in self.kinds.items()}, **milliseconds, "whole": self.whole}


def faster(
    where: str,
    scheme: Quantization,
    proto: onnx.ModelProto,
    feeds: Feeds | None,
    judge: Judge | None,
    sample: Feed,
    timer: Timer = timed,
) -> Quantized:
    """The graph in integers but for the kinds of layers that are faster in float on this machine, found by timing whole
    files; the float graph itself, with a warning, where no file in integers is as fast."""
    trials = _Trials(scheme, proto, feeds, sample, timer)
    everything = trials.quantized(())
    assert everything is not None
    kinds = kinds_of(proto, everything.changes)
    kept = _chosen(trials, kinds)
    facts = {"keep_float": kept.data()}
    if kept.whole:
        slower = kept.integers_ms / kept.float_ms
        warnings.warn(
            f"{where}: keep_float: no file in integers is as fast as the float file on this machine (all in integers: "
            f"{slower:.1f} × its time), so the file is written in float; ship it so, or take a scheme without "
            "keep_float where a smaller file is worth the time",
            stacklevel=3,
        )
        changes = tuple(replace(each, after=each.before, note=each.note or FASTER) for each in everything.changes)
        return Quantized(proto, changes, facts)
    found = trials.scheme_with(tuple(kept.kinds), kinds).quantize(proto, feeds, judge)
    spared = {path for paths in kept.kinds.values() for path in paths}
    changes = tuple(
        replace(each, note=FASTER) if each.path in spared and each.note == PROTECTED else each for each in found.changes
    )
    return Quantized(found.graph, changes, {**found.facts, **facts})


@dataclass(frozen=True)
class _Trials:
    """Files with some kinds in float, calibrated on one batch: their speed does not hang on the ranges."""

    scheme: Quantization
    proto: onnx.ModelProto
    feeds: Feeds | None
    sample: Feed
    timer: Timer

    def scheme_with(self, kept: Sequence[str], kinds: Mapping[str, Sequence[str]]) -> Quantization:
        """The scheme that protects these kinds too."""
        paths = [path for kind in kept for path in kinds[kind]]
        return self.scheme.replace(protect=(*self.scheme.protect, *paths)) if paths else self.scheme

    def quantized(self, kept: Sequence[str], kinds: Mapping[str, Sequence[str]] | None = None) -> Quantized | None:
        """The graph with these kinds in float; None where none is left in integers."""
        kinds = kinds or {}
        if kinds and not set(kinds) - {*kept, TABLES}:
            return None
        feeds = self.feeds
        few = None if feeds is None else lambda: islice(feeds(), 1)
        scheme = self.scheme_with(kept, kinds)
        return scheme.replace(**scheme.unjudged).quantize(self.proto, few, None)

    def times(self, tries: Sequence[Sequence[str]], kinds: Mapping[str, Sequence[str]]) -> tuple[float, list[float]]:
        """Milliseconds of the float file and of each try, all in one measurement; infinite for one without integers."""
        with tempfile.TemporaryDirectory() as folder:
            files = {"float": save(self.proto, Path(folder) / FILE)}
            for number, kept in enumerate(tries):
                found = self.quantized(kept, kinds)
                if found is not None:
                    files[str(number)] = save(found.graph, Path(folder) / f"{number}.onnx")
            seen = self.timer(files, self.sample)
        own = [seen[str(number)].p50_ms if str(number) in seen else float("inf") for number in range(len(tries))]
        return seen["float"].p50_ms, own


def _chosen(trials: _Trials, kinds: Mapping[str, Sequence[str]]) -> Kept:
    """The kinds that stay in float: first each is tried alone, then the best ones together, more and more; where float
    is still faster, each is the only one in integers once. Of files that take as long the one with most integers."""
    products = [kind for kind in kinds if kind != TABLES]
    _, (integers_ms, *alone) = trials.times([[], *([kind] for kind in products)], kinds)
    ranked = [kind for _, kind in sorted(zip(alone, products), key=lambda each: each[0])]
    tries = [ranked[:count] for count in range(len(ranked) + 1)]
    float_ms, own = trials.times(tries, kinds)
    if min(own) * GAIN > float_ms and len(products) > 1:
        tries = [[other for other in products if other != kind] for kind in products]
        float_ms, own = trials.times(tries, kinds)
    best = min(own)
    if best * GAIN > float_ms:
        return Kept(kinds, float_ms, integers_ms, float_ms, whole=True)
    now, kept = next((ms, kept) for ms, kept in zip(own, tries) if ms * GAIN <= best)
    return Kept({kind: kinds[kind] for kind in kept}, float_ms, integers_ms, now)
