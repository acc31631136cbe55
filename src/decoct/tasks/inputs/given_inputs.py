"""GivenInput: one input of a text model that a user's loaders gave in training, as its exported file takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from decoct.errors import RecipeError
from decoct.models.interface import Port
from decoct.spec import Spec
from decoct.tasks.inputs.base import made_up

IDS, MASK = "input_ids", "attention_mask"


class GivenInput(Spec):
    """What a loader gave under one name: the `type` of its numbers (of what is no tensor its class), and the `shape` of
    one sample, None where an axis has the length of the text. `keyword`: false where the model took it by position."""

    type: str = "int64"
    shape: tuple[int | None, ...] = (None,)
    keyword: bool = True


GivenInputs = Mapping[str, GivenInput]
STANDARD: GivenInputs = {IDS: GivenInput(), MASK: GivenInput()}


def given_inputs(inputs: Any) -> dict[str, GivenInput]:
    """What a loader gives a text model; empty where it is ids and attention mask, as everywhere.

    >>> found = given_inputs({"input_ids": torch.ones(2, 5, dtype=torch.int64), "weight": torch.ones(2, 3)})
    >>> [(name, each.type, each.shape) for name, each in found.items()]
    [('input_ids', 'int64', (None,)), ('weight', 'float32', (3,))]
    """
    if isinstance(inputs, Tensor):
        return {IDS: _given(inputs, inputs.shape[1]).replace(keyword=False)}
    length = inputs[IDS].shape[1]
    found = {str(name): _given(value, length) for name, value in inputs.items()}
    return {} if found == STANDARD else found


def _given(value: Any, length: int) -> GivenInput:
    if not isinstance(value, Tensor) or value.ndim == 0:
        return GivenInput(type=type(value).__name__, shape=())
    return GivenInput(
        type=str(value.dtype).removeprefix("torch."),
        shape=tuple(None if size == length else size for size in value.shape[1:]),
    )


def given_ports(inputs: GivenInputs, longest: int) -> dict[str, Port]:
    """The inputs of a network, by name."""
    axes = given_axes(inputs)
    return {
        name: Port(
            kind="ids" if each.type == "int64" else "features",
            shape=tuple(longest if size is None else size for size in each.shape),
            axes=axes[name],
        )
        for name, each in inputs.items()
    }


def given_axes(inputs: GivenInputs) -> dict[str, dict[int, str]]:
    """The free axes of each input: the samples, and the length of the text."""
    return {
        name: {0: "batch", **{axis: "length" for axis, size in enumerate(each.shape, 1) if size is None}}
        for name, each in inputs.items()
    }


def given_example(inputs: GivenInputs, standard: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Made-up inputs beside made-up ids and mask: normal numbers, or zeros where they are whole; RecipeError for what
    no file takes."""
    batch, length = standard[IDS].shape
    found: dict[str, Tensor] = {}
    for name, each in inputs.items():
        dtype = vars(torch).get(each.type)
        if not isinstance(dtype, torch.dtype):
            raise RecipeError(
                f"the model was trained with {name!r}, of type {each.type}, which no exported file takes; leave it out "
                "of what the loaders give, or give it as a tensor with a row for each sample"
            )
        shape = (batch, *(length if size is None else size for size in each.shape))
        value = made_up(shape) if dtype.is_floating_point else torch.zeros(shape)
        found[name] = standard.get(name, value).to(dtype)
    return found


def refuse_other_names(expected: Any, inputs: Any) -> None:
    """RecipeError where what was read has other names than what the file takes."""
    got = list(inputs) if isinstance(inputs, Mapping) else [IDS]
    absent, further = [name for name in expected if name not in got], [name for name in got if name not in expected]
    if further:
        raise RecipeError(
            f"the samples give {', '.join(map(repr, further))} too, which the file would not take (it takes "
            f"{', '.join(expected)}), so that it would answer otherwise than the model; leave it out of what loaders "
            "give, or let it be in the first batch of the training loader of decoct.distill, from which the file's "
            "inputs are taken"
        )
    if absent:
        raise RecipeError(
            f"the samples give no {', '.join(map(repr, absent))}, which the model was trained with and the file takes; "
            "give all splits the same inputs"
        )
