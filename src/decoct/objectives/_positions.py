"""Which positions of a feature are padding, as the inputs of its model say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from decoct.capture import split_path
from decoct.errors import RecipeError
from decoct.objectives._numeric import shape
from decoct.objectives.base import Objective, Probe
from decoct.outputs import Batch

MASK = "attention_mask"


class Positions:
    """The positions of a term's features that count: those that a mask among the inputs of the student's reader keeps.

    A feature is said to be padded by `attention_mask`; one below a module NAME by `NAME_attention_mask`, where there is
    such an input (`decoder.layers.3`: `decoder_attention_mask`). All features of a term are padded by one mask, and it
    is as long as each of them. Inputs without such a mask: all positions count. What the answer of the task is made at
    (`Answer.kept`) has no say here: a feature is there at each token, whether it is one to be answered or not.
    """

    def __init__(self, objective: Objective, probe: Probe, paths: Iterable[str]) -> None:
        """RecipeError where a feature has another number of positions than its mask, or two have unlike masks."""
        self.reader, self.name = probe.reader, None
        inputs: Any = probe.batch.inputs.get(probe.reader)
        found = {path: mask_of(inputs, path) for path in paths}
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{path} by {name or 'none'}" for path, name in found.items())
            raise RecipeError(
                f"{objective.label}: its layers are padded by unlike masks ({listed}), so they count unlike positions; "
                "give each its own term"
            )
        for path, name in found.items():
            feature = probe.student.features[path]
            if name is not None and feature.shape[-2] != inputs[name].shape[-1]:
                raise RecipeError(
                    f"{objective.label}: student {path} {shape(feature)} has {feature.shape[-2]} positions, and {name} "
                    f"of the inputs {inputs[name].shape[-1]}, so it does not say which are padding; name a layer with "
                    f"as many"
                )
            self.name = name

    def kept(self, batch: Batch) -> Tensor | None:
        """Bool `[B, N]`; None where all positions count."""
        if self.name is None:
            return None
        mask = batch.side(self.reader)[self.name]
        assert isinstance(mask, Tensor)
        return mask.bool()


def mask_of(inputs: Any, path: str) -> str | None:
    """The name of the input that says which positions of a feature are padding; None where there is none.

    >>> inputs = {"attention_mask": 1, "decoder_attention_mask": 1}
    >>> mask_of(inputs, "encoder.layers.0"), mask_of(inputs, "model.decoder.layers.0")
    ('attention_mask', 'decoder_attention_mask')
    """
    if not isinstance(inputs, Mapping):
        return None
    names = [f"{part}_{MASK}" for part in split_path(path).module.split(".")]
    return next((name for name in (*names, MASK) if name in inputs), None)
