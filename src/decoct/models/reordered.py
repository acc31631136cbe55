"""Outputs of a network in another order, or some of them alone, by the rows of its last layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from decoct.errors import RecipeError
from decoct.models.base import Interface
from decoct.models.checks import call, example

CLOSE = 1e-5
"""How far logits may differ, relative to the largest, where the rows of a head were put into another order."""


def choose_outputs(module: nn.Module, order: Sequence[int], interface: Interface) -> None:
    """Rearranges the last layer in place, so that output i is what output `order[i]` was; others are dropped.

    `interface` as it was. RecipeError where no linear layer at the end makes the outputs.

    >>> net = nn.Linear(2, 3)
    >>> from decoct.models.base import Interface
    >>> before = net(torch.ones(1, 2))
    >>> choose_outputs(net, (2, 0), Interface(kind="tabular", shape=(2,), outputs=3))
    >>> torch.equal(net(torch.ones(1, 2)), before[:, [2, 0]])
    True
    """
    wide = interface.width
    heads = [each for each in module.modules() if isinstance(each, nn.Linear) and each.out_features == wide]
    was, inputs = module.training, _varied(interface)
    module.eval()
    with torch.no_grad():
        before = call(module, inputs)[..., list(order)]
        for each in reversed(heads):
            kept = each.weight.data, None if each.bias is None else each.bias.data
            each.weight.data = each.weight.data[list(order)].clone()
            if each.bias is not None:
                each.bias.data = each.bias.data[list(order)].clone()
            each.out_features = len(order)
            if _gives(module, inputs, before):
                module.train(was)
                _told(module, len(order))
                return
            each.weight.data, each.out_features = kept[0], wide
            if kept[1] is not None:
                each.bias.data = kept[1]
            _told(module, wide)
    raise RecipeError(
        f"{type(module).__name__}: its {wide} outputs do not come straight from a linear layer, so that they cannot be "
        "brought into the order of the data's classes; name the classes of the task in its order (task.classes)"
    )


def _varied(interface: Interface) -> dict[str, torch.Tensor]:
    """Two samples whose logits differ, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    found = example(interface, batch=2)
    for name, value in found.items():
        if value.is_floating_point():
            found[name] = torch.randn(value.shape, generator=generator)
        elif name == "input_ids" and interface.vocabulary:
            found[name] = torch.randint(0, interface.vocabulary, value.shape, generator=generator)
    return found


def _gives(module: nn.Module, inputs: dict[str, torch.Tensor], wanted: torch.Tensor) -> bool:
    _told(module, wanted.shape[-1])
    try:
        found = call(module, inputs)
    except (RuntimeError, ValueError, IndexError):
        return False
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= CLOSE * (1 + wanted.abs().max()))


def _told(module: nn.Module, count: int) -> None:
    """Tells a network of transformers how many outputs it has now."""
    config = getattr(module, "config", None)
    if config is not None and hasattr(config, "num_labels"):
        config.num_labels = count
        module.num_labels = count  # type: ignore[assignment]
