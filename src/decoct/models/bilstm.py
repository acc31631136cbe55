"""BiLSTM: a bidirectional recurrent net for text."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.memory import Depth, Width
from decoct.models.base import Interface, Model
from decoct.models.checks import require_kind


class BiLSTM(Model):
    """A bidirectional LSTM over tokens, mean and maximum over the real ones, a linear head.

    Where the task asks for an answer at each token the head reads each, without mean and maximum. `embedding`: width of
    a token's vector; `hidden`: width of each direction; `dropout`: on embeddings, between layers and before the head.
    `layers`: LSTM layers, one on the other. Padding never changes the logits, wherever it stands. Feature paths:
    `embedding`, `layer1.forwards[0]`, `layer1`, ..., `head`. Graves & Schmidhuber 2005.
    """

    use: ClassVar[str] = "bilstm"
    becomes_onnx: ClassVar[bool] = True
    embedding: Width = 128
    hidden: Width = 128
    layers: Depth = 1
    dropout: float = Field(default=0.3, ge=0, lt=1)

    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        require_kind(interface, self.use, "text")
        if interface.vocabulary is None:
            raise RecipeError("bilstm needs the size of the vocabulary, and the task has none")
        return BiLSTMNet(self, interface)


class BiLSTMNet(nn.Module):
    """`input_ids=`, `attention_mask=` `[B, L]` (1 where a token is real) -> logits `[B, outputs]` or of each token."""

    def __init__(self, spec: BiLSTM, interface: Interface) -> None:
        super().__init__()
        assert interface.vocabulary is not None
        self.positions = interface.positions
        self.embedding = nn.Embedding(interface.vocabulary, spec.embedding, padding_idx=interface.padding)
        self.dropout = nn.Dropout(spec.dropout)
        self.layers = tuple(f"layer{i + 1}" for i in range(spec.layers))
        for i, name in enumerate(self.layers):
            self.add_module(name, BiLSTMLayer(2 * spec.hidden if i else spec.embedding, spec.hidden))
        self.head = nn.Linear((2 if self.positions else 4) * spec.hidden, interface.width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        real = attention_mask != 0
        order = _real_first(real)
        real, ids = real.gather(1, order), input_ids.gather(1, order)
        backwards = _reversal(real)
        x = self.dropout(self.embedding(ids))
        for name in self.layers:
            x = self.dropout(self.get_submodule(name)(x, backwards))
        if self.positions:
            found = _take(x, torch.argsort(order, dim=1))
        else:
            found = torch.cat([_mean(x, real), _maximum(x, real)], 1)
        logits: Tensor = self.head(found)
        return logits


class BiLSTMLayer(nn.Module):
    """Both directions of one layer: `[B, L, F]`, reversal `[B, L]` -> `[B, L, 2 * hidden]`.

    The backward direction runs over the real tokens in reverse, padding after them as in the forward direction, so
    neither sees padding before a real token. (Packed sequences do the same but do not export.)
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.forwards = nn.LSTM(inputs, hidden, batch_first=True)
        self.backwards = nn.LSTM(inputs, hidden, batch_first=True)

    def forward(self, x: Tensor, reversal: Tensor) -> Tensor:
        ahead = self.forwards(x)[0]
        behind = _take(self.backwards(_take(x, reversal))[0], reversal)
        return torch.cat([ahead, behind], 2)


def _real_first(real: Tensor) -> Tensor:
    """Positions `[B, L]` that bring real tokens to the front in their order (right padding: 0, 1, 2, ...)."""
    length = real.shape[1]
    position = torch.arange(length, device=real.device).expand_as(real)
    return torch.argsort(torch.where(real, position, position + length), dim=1)


def _reversal(real: Tensor) -> Tensor:
    """Positions `[B, L]` that turn the real tokens, which come first, around and leave the rest in place."""
    position = torch.arange(real.shape[1], device=real.device).expand_as(real)
    return torch.where(real, real.sum(1, keepdim=True) - 1 - position, position)


def _take(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.unsqueeze(2).expand(-1, -1, x.shape[2]))


def _mean(x: Tensor, real: Tensor) -> Tensor:
    kept = real.unsqueeze(2).to(x.dtype)
    return (x * kept).sum(1) / kept.sum(1).clamp(min=1)


def _maximum(x: Tensor, real: Tensor) -> Tensor:
    """Maximum over the real tokens; 0 where there are none (LSTM outputs lie between -1 and 1)."""
    best = torch.where(real.unsqueeze(2), x, torch.full_like(x, -2.0)).amax(1)
    return torch.where(real.any(1, keepdim=True), best, torch.zeros_like(best))
