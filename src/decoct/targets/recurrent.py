"""Recurrent layers as ONNX's own operators, for sequences of any length.

torch's tracer unrolls an LSTM over the example's length, which would fix that length in the file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from decoct.errors import RecipeError

ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}
"""Where each of ONNX's gates (LSTM: i o f c, GRU: z r h) stands in torch (LSTM: i f g o, GRU: r z n)."""


def with_onnx_recurrence(program: nn.Module) -> nn.Module:
    """Replaces, in place, each LSTM and GRU of a program that is about to be traced; it cannot run eagerly after."""
    made: dict[int, nn.Module] = {}
    for path, module in list(program.named_modules(remove_duplicate=False)):
        for name, child in list(module._modules.items()):
            if isinstance(child, nn.LSTM | nn.GRU):
                if id(child) not in made:
                    made[id(child)] = OnnxRecurrence(child, f"{path}.{name}".strip("."))
                module._modules[name] = made[id(child)]
    return program


class OnnxRecurrence(nn.Module):
    """Takes and returns what the LSTM or GRU does, as ONNX operators, one for each layer."""

    def __init__(self, layer: nn.LSTM | nn.GRU, path: str) -> None:
        super().__init__()
        if layer.proj_size:
            raise RecipeError(
                f"ONNX has no LSTM with a projection; module {path!r} has proj_size={layer.proj_size}, set 0"
            )
        self.operator, self.path = type(layer).__name__, path
        self.hidden_size, self.num_layers = layer.hidden_size, layer.num_layers
        self.batch_first, self.directions = layer.batch_first, 2 if layer.bidirectional else 1
        for i in range(self.num_layers):
            for name, value in _weights(layer, i, ORDER[self.operator]).items():
                self.register_buffer(f"{name}{i}", value)

    def forward(self, x: Any, hx: Any = None) -> tuple[Tensor, Any]:
        if not isinstance(x, Tensor) or x.dim() != 3:
            raise RecipeError(
                f"ONNX: module {self.path!r} ({self.operator}) takes a packed or unbatched sequence; "
                "give it a padded one [batch, length, width] and mask what follows"
            )
        x = x.transpose(0, 1) if self.batch_first else x
        states = [] if hx is None else [hx] if isinstance(hx, Tensor) else list(hx)
        last: list[list[Tensor]] = []
        for i in range(self.num_layers):
            at = slice(i * self.directions, (i + 1) * self.directions)
            x, *ends = self._layer(x, i, [state[at] for state in states])
            last.append(ends)
        finals = tuple(torch.cat(each, 0) for each in zip(*last))
        x = x.transpose(0, 1) if self.batch_first else x
        return x, finals if self.operator == "LSTM" else finals[0]

    def _layer(self, x: Tensor, i: int, states: list[Tensor]) -> list[Tensor]:
        length, batch = x.shape[0], x.shape[1]
        inputs = [x, *(self.get_buffer(f"{name}{i}") for name in ("W", "R", "B"))]
        attributes: dict[str, Any] = {
            "hidden_size": self.hidden_size,
            "direction": "bidirectional" if self.directions == 2 else "forward",
            **({"linear_before_reset": 1} if self.operator == "GRU" else {}),
        }
        end = (self.directions, batch, self.hidden_size)
        shapes = [(length, self.directions, batch, self.hidden_size), *[end] * (2 if self.operator == "LSTM" else 1)]
        out, *ends = torch.onnx.ops.symbolic_multi_out(
            self.operator,
            [*inputs, None, *states] if states else inputs,
            attributes,
            dtypes=[x.dtype] * len(shapes),
            shapes=shapes,
        )
        joined = out.transpose(1, 2).reshape(length, batch, self.directions * self.hidden_size)
        return [joined, *ends]


def _weights(layer: nn.LSTM | nn.GRU, i: int, order: tuple[int, ...]) -> dict[str, Tensor]:
    """W `[D, G*H, I]`, R `[D, G*H, H]`, B `[D, 2*G*H]` of layer `i`, gates in ONNX's order."""
    suffixes = [f"_l{i}", f"_l{i}_reverse"][: 2 if layer.bidirectional else 1]

    def gates(name: str) -> Tensor:
        chunks = getattr(layer, name).detach().chunk(len(order), 0)
        return torch.cat([chunks[k] for k in order], 0)

    found = {
        "W": torch.stack([gates(f"weight_ih{suffix}") for suffix in suffixes]),
        "R": torch.stack([gates(f"weight_hh{suffix}") for suffix in suffixes]),
    }
    if layer.bias:
        biases = [torch.cat([gates(f"bias_ih{suffix}"), gates(f"bias_hh{suffix}")]) for suffix in suffixes]
        found["B"] = torch.stack(biases)
    else:
        found["B"] = torch.zeros(len(suffixes), 2 * len(order) * layer.hidden_size, dtype=found["W"].dtype)
    return found
