"""GroupedAttention: heads of attention that share keys and values."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from decoct.models.repeat_heads import RepeatHeads
from decoct.rewriting._factors import set_weight
from decoct.rewriting._layers import Kept, Rewritten, named, put_in_place, tied
from decoct.training.compression import Compressed, Evidence, Scheme, protected

HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head")
"""Attributes under which attention modules keep the number of their heads."""
KEYS_AND_VALUES = (("key", "value"), ("k_lin", "v_lin"), ("k_proj", "v_proj"))
"""Names of the two projections, of transformers' BERT and its kin, DistilBERT, BART and its kin."""
FUSED = {
    ("timm.layers.attention", "Attention"),
    ("timm.models.vision_transformer", "Attention"),
    ("decoct.models.small_vit", "Attention"),
}
"""Classes whose `qkv` gives queries, keys and values of all heads in this order."""


class GroupedAttention(Scheme):
    """Several heads of self-attention share one key and one value: heads in `groups` equal groups, each the mean.

    The projections of keys and values shrink to groups / heads of their size; `RepeatHeads` behind them gives the
    attention's own code what it expects. `layers`: paths of the attention modules. Knows transformers' BERT and its
    kin, DistilBERT, and timm's vision transformers. Needs recovery: the mean of heads is a start, no equal.

    Ainslie et al. 2023, arXiv 2305.13245.
    """

    use: ClassVar[str] = "grouped_attention"
    groups: int = Field(default=2, ge=1)
    layers: tuple[str, ...] = Field(default=("*",), min_length=1)

    def apply(self, module: nn.Module, evidence: Evidence) -> Compressed:
        wanted, safe = named(module, self.layers), protected(module, self.protect)
        found: dict[str, Rewritten | Kept] = {}
        shared = tied(module)
        for path, attention in module.named_modules():
            if path not in wanted:
                continue
            heads = heads_of(attention)
            for name, lead in _projections(attention).items():
                whole = f"{path}.{name}"
                if path in safe or whole in safe:
                    found[whole] = Kept(heads, "protected")
                elif any(id(each) in shared for each in attention.get_submodule(name).parameters()):
                    found[whole] = Kept(heads, "its weight is shared with another module")
                else:
                    found[whole] = self._grouped(attention.get_submodule(name), heads, lead)
            if isinstance(attention, nn.MultiheadAttention):
                why = "torch's MultiheadAttention keeps its projections in one tensor that its code reads directly"
                found[path] = Kept(attention.num_heads, why)
        return put_in_place(self, module, found, "heads", evidence)

    def _grouped(self, layer: nn.Module, heads: int, lead: bool) -> Rewritten | Kept:
        """A projection to fewer heads; with `lead` a third of its outputs are queries, which stay."""
        if type(layer) is not nn.Linear:
            return Kept(heads, f"its projection is a {type(layer).__name__}, no plain Linear")
        parts = 2 if lead else 1
        blocks = 3 if lead else 1
        if layer.out_features % (blocks * heads):
            return Kept(heads, f"{layer.out_features} outputs are not {blocks * heads} equal heads")
        if heads % self.groups:
            allowed = [str(each) for each in range(1, heads) if heads % each == 0]
            return Kept(heads, f"groups is {self.groups}, its {heads} heads can share in {', '.join(allowed)}")
        if heads == self.groups:
            return Kept(heads, f"it has {heads} heads already")
        width = layer.out_features // (blocks * heads)
        start = heads * width if lead else 0
        new = nn.Linear(layer.in_features, start + parts * self.groups * width, bias=layer.bias is not None)
        new = new.to(layer.weight.device, layer.weight.dtype)
        bias = None if layer.bias is None else self._mean(layer.bias, start, parts, width)
        set_weight(new, self._mean(layer.weight, start, parts, width), bias)
        repeat = RepeatHeads(heads, self.groups, width, parts=parts, lead=start)
        share = f"{layer.weight.numel()} weights become {new.weight.numel()}"
        return Rewritten(nn.Sequential(new, repeat), heads, self.groups, share)

    def _mean(self, rows: Tensor, start: int, parts: int, width: int) -> Tensor:
        """Rows `[start + parts * heads * width, ...]`, after `start` the mean over the heads of each group."""
        rows = rows.detach().double()
        rest = rows[start:].reshape(parts * self.groups, -1, width, *rows.shape[1:]).mean(1)
        return torch.cat([rows[:start], rest.reshape(-1, *rows.shape[1:])])


def heads_of(attention: nn.Module) -> int:
    """The number of heads that an attention module keeps; 0 where it keeps none."""
    own = vars(attention)
    return next((int(own[name]) for name in HEADS if isinstance(own.get(name), int)), 0)


def _projections(attention: nn.Module) -> dict[str, bool]:
    """Names of the projections of keys and values; True where queries come first in the same."""
    kind = type(attention)
    if not heads_of(attention):
        return {}
    children = dict(attention.named_children())
    if (kind.__module__, kind.__name__) in FUSED and "qkv" in children:
        return {"qkv": True}
    for names in KEYS_AND_VALUES:
        if all(name in children for name in names):
            return dict.fromkeys(names, False)
    return {}
