"""Cutting indices out of a network's tensors, and telling its modules their new sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from decoct.pruning._atoms import Axis

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def cut(module: nn.Module, gone: Mapping[Axis, np.ndarray]) -> None:
    """Removes indices along axes, in place; a tensor with several owners goes on being shared."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    renewed: dict[int, Tensor] = {}
    cuts: dict[str, list[tuple[int, np.ndarray]]] = {}
    for axis, indices in gone.items():
        cuts.setdefault(axis.tensor, []).append((axis.dim, indices))
    for name, found in cuts.items():
        tensor = tensors[name].detach()
        for dim, indices in found:
            stays = np.ones(tensor.shape[dim], bool)
            stays[indices] = False
            keep = torch.as_tensor(np.flatnonzero(stays), device=tensor.device)
            tensor = tensor.index_select(dim, keep)
        renewed[id(tensors[name])] = _like(tensors[name], tensor.contiguous())
    widths = _channels(module)
    for each in module.modules():
        for table in (each._parameters, each._buffers):
            for name, value in table.items():
                if value is not None and id(value) in renewed:
                    table[name] = renewed[id(value)]  # type: ignore[assignment]
    _resize(module)
    _rename_widths(module, widths)


def _like(old: Tensor, new: Tensor) -> Tensor:
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def _resize(module: nn.Module) -> None:
    """Sizes that layers keep as numbers, read off their tensors."""
    for each in module.modules():
        if isinstance(each, CONVOLUTIONS):
            depthwise = each.groups == each.in_channels and each.groups > 1
            each.out_channels = each.weight.shape[0]
            each.groups = each.weight.shape[0] if depthwise else each.groups
            each.in_channels = each.weight.shape[1] * each.groups
        elif isinstance(each, TRANSPOSED):
            each.in_channels, each.out_channels = each.weight.shape[0], each.weight.shape[1] * each.groups
        elif isinstance(each, nn.Linear):
            each.out_features, each.in_features = each.weight.shape
        elif isinstance(each, nn.Embedding):
            each.num_embeddings, each.embedding_dim = each.weight.shape
        elif isinstance(each, nn.RNNBase):
            sizes = {name: value.shape[1] for name, value in each.named_parameters() if value.dim() > 1}
            each.input_size, each.hidden_size = sizes["weight_ih_l0"], sizes["weight_hh_l0"]
            each._init_flat_weights()
        else:
            _resize_norm(each)


def _resize_norm(each: nn.Module) -> None:
    if isinstance(each, nn.modules.batchnorm._NormBase):
        known = each.weight if each.weight is not None else each.running_mean
        each.num_features = each.num_features if known is None else len(known)
    elif isinstance(each, nn.LayerNorm | nn.RMSNorm) and each.weight is not None:
        each.normalized_shape = tuple(each.weight.shape)
    elif isinstance(each, nn.GroupNorm) and each.weight is not None:
        each.num_channels = len(each.weight)
    elif isinstance(each, nn.PReLU):
        each.num_parameters = each.weight.numel()


WIDTHS: Mapping[str, Mapping[str, str]] = {
    "VisionTransformer": {
        "hidden_dim": "conv_proj.weight",
        "embed_dim": "patch_embed.proj.weight",
        "num_features": "patch_embed.proj.weight",
        "head_hidden_size": "patch_embed.proj.weight",
    },
}
"""Attributes of networks by class that hold a width, and the tensor whose first axis has it."""


def _channels(module: nn.Module) -> dict[str, int]:
    return {name: each.shape[0] for name, each in module.named_parameters() if each.dim()}


def _rename_widths(module: nn.Module, before: Mapping[str, int]) -> None:
    """Attributes of networks that hold the width of their tokens."""
    after = _channels(module)
    for path, each in module.named_modules():
        for name, tensor in WIDTHS.get(type(each).__name__, {}).items():
            full = f"{path}.{tensor}" if path else tensor
            if full in after and vars(each).get(name) == before[full]:
                setattr(each, name, after[full])
        config: Any = vars(each).get("config")
        if config is not None:
            _rename_config(config, before, after)


def _rename_config(config: Any, before: Mapping[str, int], after: Mapping[str, int]) -> None:
    """Widths in a transformer's config, where every layer has the same."""
    for attribute, end in (("hidden_size", "LayerNorm.weight"), ("intermediate_size", "intermediate.dense.weight")):
        mine = [name for name in after if name.endswith(end)]
        sizes = {after[name] for name in mine}
        if len(sizes) == 1 and vars(config).get(attribute) == before[mine[0]]:
            setattr(config, attribute, sizes.pop())
