"""Attention whose heads need not fill the width of the tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SlimAttention(nn.Module):
    """Self-attention that takes the place of an `nn.MultiheadAttention` some of whose heads are gone.

    Its tensors have the same names; `in_proj_weight` is `[3 * heads * head_dim, width]`, `out_proj.weight`
    `[width, heads * head_dim]`. Takes and returns what the original does; the attention weights it returns are None.

    >>> slim = SlimAttention.of(nn.MultiheadAttention(8, 2, batch_first=True))
    >>> x = torch.ones(1, 3, 8)
    >>> slim(x, x, x)[0].shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, num_heads: int, head_dim: int, *, dropout: float, batch_first: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.dropout, self.batch_first = dropout, batch_first
        self._qkv_same_embed_dim = False
        self.in_proj_weight: nn.Parameter
        self.in_proj_bias: nn.Parameter | None
        self.out_proj: nn.Linear

    @staticmethod
    def can_be(full: nn.MultiheadAttention) -> bool:
        """Whether queries, keys and values have one width, and no keys are added."""
        return bool(full._qkv_same_embed_dim) and full.bias_k is None and not full.add_zero_attn

    @classmethod
    def of(cls, full: nn.MultiheadAttention) -> SlimAttention:
        """The same attention, with the same parameters."""
        assert cls.can_be(full)
        slim = cls(full.num_heads, full.head_dim, dropout=full.dropout, batch_first=full.batch_first)
        slim.in_proj_weight = full.in_proj_weight
        slim.register_parameter("in_proj_bias", full.in_proj_bias)
        width = full.embed_dim
        slim.out_proj = nn.Linear(width, width, bias=full.out_proj.bias is not None, device="meta")
        slim.out_proj.weight = full.out_proj.weight
        slim.out_proj.register_parameter("bias", full.out_proj.bias)
        return slim.train(full.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        weights = torch.chunk(self.in_proj_weight, 3)
        biases = (None,) * 3 if self.in_proj_bias is None else torch.chunk(self.in_proj_bias, 3)
        given = (query, key, value) if self.batch_first else [each.transpose(0, 1) for each in (query, key, value)]
        q, k, v = (
            F.linear(x, w, b).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
            for x, w, b in zip(given, weights, biases)
        )
        mask = self._mask(q, key_padding_mask, attn_mask)
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal and mask is None
        )
        x = self.out_proj(x.transpose(1, 2).flatten(2))
        return (x if self.batch_first else x.transpose(0, 1)), None

    def _mask(self, q: Tensor, padding: Tensor | None, attention: Tensor | None) -> Tensor | None:
        """Both masks as one that is added to the scores, `[B or 1, heads or 1, T, S]`."""
        total: Tensor | None = None
        if attention is not None:
            total = _added(attention, q)
            total = total.unflatten(0, (-1, self.num_heads)) if total.dim() == 3 else total[None, None]
        if padding is not None:
            hidden = _added(padding, q)[:, None, None]
            total = hidden if total is None else total + hidden
        return total


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as numbers to add: minus infinity where a boolean one is True."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
