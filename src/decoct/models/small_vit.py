"""A small vision transformer for small images."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decoct.errors import RecipeError
from decoct.memory import Depth, Side, Width
from decoct.models.base import Interface, Model
from decoct.models.checks import require_kind


class SmallViT(Model):
    """A vision transformer for images of 8 to 64 pixels: square patches, learned places, a class token, pre-norm.

    `patch`: pixels of a patch's side, which must divide both sides of the image; `width` numbers a token, in `heads`
    equal parts; `depth` blocks; `expansion`: the hidden layer of a block, in widths; `activation` inside it (relu is
    what int8 kernels fuse). Feature paths: `embed`, `blocks.0`
    and on (tokens `[B, 1 + N, width]`, the class token first), `norm`, `head`. Dosovitskiy et al. 2021, arXiv
    2010.11929, section 3.1.
    """

    use: ClassVar[str] = "small_vit"
    becomes_onnx: ClassVar[bool] = True
    patch: Side = 2
    width: Width = 64
    depth: Depth = 4
    heads: Width = 4
    expansion: Depth = 2
    activation: Literal["relu", "gelu"] = "relu"

    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        require_kind(interface, self.use, "image")
        channels, height, width = interface.shape
        if height % self.patch or width % self.patch:
            raise RecipeError(
                f"small_vit: patch is {self.patch} and images are {height} by {width}; give a patch that divides both"
            )
        if self.width % self.heads:
            raise RecipeError(f"small_vit: width is {self.width} and heads {self.heads}; heads must divide width")
        count = (height // self.patch) * (width // self.patch)
        return SmallViTNet(channels, interface.width, count, self)


class SmallViTNet(nn.Module):
    """`[B, C, H, W]` -> logits `[B, outputs]`."""

    def __init__(self, channels: int, outputs: int, patches: int, spec: SmallViT) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, spec.width, spec.patch, spec.patch)
        self.token = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.places = nn.Parameter(0.02 * torch.randn(1, 1 + patches, spec.width))
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.width)
        self.head = nn.Linear(spec.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.places
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits


class Block(nn.Module):
    """Attention and a hidden layer, each after a layer norm and beside a shortcut."""

    def __init__(self, spec: SmallViT) -> None:
        super().__init__()
        hidden = spec.expansion * spec.width
        self.norm1 = nn.LayerNorm(spec.width)
        self.attn = Attention(spec.width, spec.heads)
        self.norm2 = nn.LayerNorm(spec.width)
        self.fc1 = nn.Linear(spec.width, hidden)
        self.act = nn.ReLU() if spec.activation == "relu" else nn.GELU()
        self.fc2 = nn.Linear(hidden, spec.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.fc2(self.act(self.fc1(self.norm2(x))))
        return out


class Attention(nn.Module):
    """Self-attention over tokens `[B, N, width]`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.head_dim = width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, self.num_heads * self.head_dim))
        return out
