"""A small causal transformer for text."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.memory import Depth, Width
from decoct.models.base import Interface, Model
from decoct.models.checks import require_kind

State = tuple[Tensor, Tensor]
"""Keys and values `[B, heads, past, width / heads]` of one block."""


class SmallGPT(Model):
    """A causal transformer: learned tokens and places, pre-norm blocks, a head that shares the tokens' table.

    `width` numbers a token, in `heads` equal parts; `depth`: blocks, one after the other; `expansion`: the hidden layer
    of a block, in widths; `tied`: the head's weight is the table of tokens. As many places as the task's `max_length`.
    Feature paths: `tokens`, `blocks.0` and on (`[B, L, width]`), `norm`, `head`. Radford et al. 2019.
    """

    use: ClassVar[str] = "small_gpt"
    becomes_onnx: ClassVar[bool] = True
    width: Width = 128
    depth: Depth = 4
    heads: Width = 4
    expansion: Depth = 4
    tied: bool = True

    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        require_kind(interface, self.use, "text")
        if not interface.positions:
            raise RecipeError("small_gpt answers at each position; for one answer a text take bilstm or transformers")
        if self.width % self.heads:
            raise RecipeError(f"small_gpt: width is {self.width} and heads {self.heads}; heads must divide width")
        return SmallGPTNet(self, interface.width, interface.shape[0])

    def head_of(self, module: nn.Module) -> str | None:
        return "head"


class SmallGPTNet(nn.Module):
    """`input_ids=`, `attention_mask=` `[B, L]` -> logits `[B, L, tokens]`.

    The mask is not needed: a position reads those before it alone, and padding stands at the end.
    """

    def __init__(self, spec: SmallGPT, tokens: int, places: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(tokens, spec.width)
        self.places = nn.Embedding(places, spec.width)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.width)
        self.head = nn.Linear(spec.width, tokens, bias=False)
        for each in (self.tokens, self.places):
            nn.init.normal_(each.weight, std=0.02)
        if spec.tied:
            self.head.weight = self.tokens.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self._embedded(input_ids, 0)
        for block in self.blocks:
            x, _ = block(x, None)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def step(self, input_ids: Tensor, past: list[State] | None) -> tuple[Tensor, list[State]]:
        """Logits `[B, tokens]` of what follows the last of `input_ids` `[B, L]`, and the state with these ids in it."""
        x = self._embedded(input_ids, 0 if past is None else past[0][0].shape[2])
        state: list[State] = []
        for number, block in enumerate(self.blocks):
            x, own = block(x, None if past is None else past[number])
            state.append(own)
        return self.head(self.norm(x[:, -1])), state

    @property
    def longest(self) -> int:
        """How many ids it can read."""
        return self.places.num_embeddings

    def _embedded(self, input_ids: Tensor, start: int) -> Tensor:
        places = torch.arange(start, start + input_ids.shape[1], device=input_ids.device)
        found: Tensor = self.tokens(input_ids) + self.places(places)
        return found


class Block(nn.Module):
    """Causal attention and a hidden layer, each after a layer norm and beside a shortcut."""

    def __init__(self, spec: SmallGPT) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.width)
        self.attn = CausalAttention(spec.width, spec.heads)
        self.norm2 = nn.LayerNorm(spec.width)
        self.fc1 = nn.Linear(spec.width, spec.expansion * spec.width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(spec.expansion * spec.width, spec.width)

    def forward(self, x: Tensor, past: State | None) -> tuple[Tensor, State]:
        mixed, state = self.attn(self.norm1(x), past)
        x = x + mixed
        return x + self.fc2(self.act(self.fc1(self.norm2(x)))), state


class CausalAttention(nn.Module):
    """Self-attention `[B, L, width]` in which a position reads itself and those before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, past: State | None) -> tuple[Tensor, State]:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        if past is None:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            before = past[0].shape[2]
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
            seen = torch.ones(length, before + length, dtype=torch.bool, device=x.device).tril(before)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return out, (k, v)
