"""Modules that cannot be taken apart, or whose numbers are not those of layers: refused by name, with what to give."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

from decoct.errors import RecipeError

SHOWN = 5
"""How many layers an error names."""
HALF = (torch.float16, torch.bfloat16)
WRAPPERS = {
    "OptimizedModule": "torch.compile's wrapper; give the module inside, model._orig_mod",
    "DataParallel": "a wrapper for several devices; give the module inside, model.module",
    "DistributedDataParallel": "a wrapper for several processes; give the module inside, model.module",
}
"""Classes of torch that stand around a module."""


def refuse_closed(module: nn.Module, what: str) -> None:
    """RecipeError for a module whose layers are not there to be worked on: scripted, wrapped, or quantized by torch."""
    kind = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise RecipeError(
            f"{what}: the model is a {kind}, which torch.jit scripted or traced, and has no layers of Python; give the "
            "module that it was made from, with the same weights"
        )
    if kind in WRAPPERS and type(module).__module__.startswith("torch."):
        raise RecipeError(f"{what}: the model is a {kind}, {WRAPPERS[kind]}")
    for path, each in module.named_modules():
        if type(each).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            raise RecipeError(
                f"{what}: {path or kind} is a {type(each).__name__} of torch.ao, whose weights are integers already; "
                "give the float model, and quantize with decoct"
            )


def refuse_half(module: nn.Module, what: str, kinds: tuple[torch.dtype, ...] = HALF) -> None:
    """RecipeError for parameters in 16 bits (of `kinds`)."""
    for name, each in module.named_parameters():
        if each.dtype in kinds:
            dtype = str(each.dtype).removeprefix("torch.")
            raise RecipeError(f"{what}: {name} is {dtype}, and this takes float32; give the model as model.float()")


def copyable(module: nn.Module) -> nn.Module:
    """The module itself, of which `copy.deepcopy` can make a copy.

    What its layers made in their last pass (the weight of torch's older weight_norm and pruning) is cut from that pass;
    the next one makes it anew.
    """
    for each in module.modules():
        for name, value in vars(each).items():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                vars(each)[name] = value.detach()
    return module


def without_weights(module: nn.Module) -> list[str]:
    """Paths of layers whose weight is made of other tensors (weight_norm, spectral_norm, torch's own pruning).

    >>> from torch.nn.utils.parametrizations import weight_norm
    >>> without_weights(nn.Sequential(weight_norm(nn.Linear(2, 2)), nn.Linear(2, 2)))
    ['0']
    """
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
    return [
        path for path, each in module.named_modules() if isinstance(each, layers) and "weight" not in each._parameters
    ]


def refuse_without_weights(module: nn.Module, what: str, paths: list[str]) -> None:
    """RecipeError that names layers of `paths` whose weight is made of other tensors, and how to bake it."""
    found = [path for path in without_weights(module) if path in paths]
    if not found:
        return
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    plain = parametrize.is_parametrized(module.get_submodule(found[0]))
    bake = "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')" if plain else _REMOVERS
    raise RecipeError(
        f"{what}: the weights of {', '.join(found[:SHOWN])}{more} are made of other tensors in each pass (weight_norm, "
        f"spectral_norm or another parametrization); bake them first: {bake}, or name these layers in `protect`"
    )


_REMOVERS = "torch.nn.utils.remove_weight_norm(layer), remove_spectral_norm(layer) or prune.remove(layer, 'weight')"
