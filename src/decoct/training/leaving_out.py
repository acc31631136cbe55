"""Leaving out what is not finite: samples once and for all, or a batch of which no sample is to blame."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import nn

from decoct.data.parts import Padding
from decoct.errors import Diverged
from decoct.outputs import Batch, Predictor
from decoct.training.base import Options, Update
from decoct.training.guards import Origin, given_up
from decoct.training.log import Log
from decoct.training.position import Position
from decoct.training.soundness import (
    LARGE,
    OWN,
    Answering,
    Why,
    beyond,
    counted,
    emptied,
    keys_of,
    largest,
    looked_into,
    suspicious,
    without,
)
from decoct.training.synchronised import has_batch_statistics


class Loop(Protocol):
    """What is asked of the loop that is at work."""

    update: Update
    options: Options
    position: Position
    log: Log
    modules: list[nn.Module]

    def undisturbed(self) -> AbstractContextManager[None]:
        """Eval mode and no gradients; all as before afterwards."""


class Soundness:
    """What a loop trains on: its windows, without what was found not to be finite.

    All that it knows is in the position, and so in the checkpoint: a run that was killed in between ends alike.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.last: float | None = None

    def note(self, origin: Origin, last: float | None) -> None:
        """Notes that the batches of `origin` were not finite; `last` is the loss before. Diverged after too many."""
        skips, guard = self.loop.position.skips, self.loop.options.guard
        assert guard is not None
        self.last = last
        again = next((each for each in skips if (each["epoch"], each["batch"]) == (origin.epoch, origin.batch)), None)
        if again is None:
            skips.append(origin.record())
        else:  # without the samples that were to blame it is not finite either
            again["whole"] = True
            self._count()
        if sum("ahead" not in each for each in skips) > guard.most:
            raise Diverged(given_up([{"why": OWN, **each} for each in skips], last))

    def kept(self, window: Sequence[Batch], noted: dict[str, Any] | None) -> list[Batch]:
        """The batches of a window without what is left out; empty where nothing is left."""
        position = self.loop.position
        if noted is None and position.left_out:
            noted = self._ahead(window)
        if noted is not None:
            self._judge(noted, window)
        elif position.epoch == 0 and not position.large:
            self._say_large(window)
        if noted is not None and noted["whole"]:
            return []
        if not position.left_out:
            return list(window)
        several = self.loop.options.processes.several
        found = [(batch, self._rest(batch)) for batch in window]
        return [
            emptied(batch) if left is None or isinstance(batch, Padding) else left  # padding repeats a sample
            for batch, left in found
            if left is not None or several
        ]

    def _rest(self, batch: Batch) -> Batch | None:
        """The batch without what is left out; None where nothing is left, or one sample, which has no statistics."""
        left = without(batch, self.loop.position.left_out)
        lonely = left is not None and len(left) == 1 < len(batch) and not self.loop.options.processes.several
        return None if lonely and has_batch_statistics(self.loop.modules) else left

    def _judge(self, noted: dict[str, Any], window: Sequence[Batch]) -> None:
        """Finds out what a window's numbers are due to, as soon as it comes again, and says so in the log."""
        position = self.loop.position
        if "why" not in noted:
            self._conclude(noted, *self._looked_into(window))
        kind = "rollback" if noted["whole"] else "left_out"
        self.loop.log.write({"kind": kind, "step": position.step, **noted})

    def _looked_into(self, window: Sequence[Batch]) -> tuple[Why, bool]:
        models: Mapping[str, Predictor] = (
            self.loop.update.predictors() if isinstance(self.loop.update, Answering) else {}
        )
        with self.loop.undisturbed():
            return looked_into(window, models, self.loop.options.processes)

    def _conclude(self, noted: dict[str, Any], why: Why, whole: bool) -> None:
        self.loop.position.left_out |= why
        noted |= {"why": counted(why) or OWN, "whole": whole or not why, "samples": list(why)}
        self._say(noted, why)
        self._count()

    def _ahead(self, window: Sequence[Batch]) -> dict[str, Any] | None:
        """Where samples were left out before, further ones are seen before they do harm: nothing must be gone back."""
        position = self.loop.position
        kept = [left for batch in window if (left := without(batch, position.left_out)) is not None]
        if self.loop.options.processes.several or not any(suspicious(each) for each in kept):
            return None
        why, whole = self._looked_into(kept)
        if not why:
            return None
        origin = Origin.of((position.epoch, position.batch, [batch.keys for batch in window]))
        noted = {**origin.record(), "ahead": True}
        position.skips.append(noted)
        self._conclude(noted, why, whole and len(kept) == len(window))
        return noted

    def _say(self, noted: dict[str, Any], why: Why) -> None:
        where = f"batch {noted['batch']} of epoch {noted['epoch']}"
        left = "left out from here on" if why else "the batch is left out"
        warnings.warn(f"{where} is not finite: {noted['why']}; {left}", stacklevel=8)

    def _count(self) -> None:
        guard = self.loop.options.guard
        assert guard is not None
        whole = [each for each in self.loop.position.skips if each.get("whole")]
        if len(whole) >= guard.limit:
            raise Diverged(given_up(whole, self.last))

    def _say_large(self, window: Sequence[Batch]) -> None:
        """Says once that inputs are finite and so large that nothing can be learned from them."""
        position = self.loop.position
        for number, batch in enumerate(window):
            if isinstance(batch, Padding) or not beyond(batch, LARGE):
                continue
            most = largest(batch)
            if len(most) and most.max() > LARGE:
                row = int(most.argmax())
                key = keys_of(batch)[row]
                position.large = True
                record = {"kind": "large", "what": "inputs", "value": float(most[row]), "keys": [key]}
                self.loop.log.write({**record, "epoch": position.epoch, "batch": position.batch + number})
                warnings.warn(
                    f"batch {position.batch + number} of epoch {position.epoch}: the inputs of sample {key} reach "
                    f"{most[row]:.3g}, which is finite and more than training bears; scale or clip them, or take the "
                    "sample out",
                    stacklevel=7,
                )
                return

    def say_spikes(self, spikes: Sequence[dict[str, Any]]) -> None:
        """Says and logs which finite losses were far from all others."""
        for each in spikes:
            self.loop.log.write({**each, "step": self.loop.position.step})
        if spikes:
            first = spikes[0]
            warnings.warn(
                f"batch {first['batch']} of epoch {first['epoch']}: the loss is {first['value']:.3g}, which is finite "
                f"and far from the others (samples {', '.join(first['keys']) or 'without keys'}); look at these "
                "samples, or set max_grad_norm",
                stacklevel=7,
            )
