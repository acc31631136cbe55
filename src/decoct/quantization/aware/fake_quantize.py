"""Fake quantizers put into a trained network, with ranges from its data."""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from decoct.errors import RecipeError
from decoct.models.kinds import copyable, refuse_closed, refuse_half, refuse_without_weights
from decoct.models.modes import evaluating
from decoct.models.rewrites import rewritten
from decoct.quantization.aware.insertion import FakeQuantizers, quantizable
from decoct.quantization.aware.modules import (
    ActivationQuantizer,
    DynamicLinear,
    Observed,
    QuantizedLayer,
)
from decoct.quantization.aware.tracing import CONVOLUTIONS, fold_batch_norm, trace, traceable
from decoct.quantization.fake import Observer
from decoct.training.compression import Change, Compressed, Evidence, Scheme, protected

FLOAT = 32
SEQUENCE_LAYERS = (nn.LayerNorm, nn.RMSNorm, nn.MultiheadAttention, nn.LSTM, nn.GRU, nn.RNN)
"""With one of these, activations are quantized dynamically: their ranges differ too much between samples."""


class FakeQuantize(Scheme):
    """Rounds weights and activations to integer grids while the network trains; the file then holds integers.

    `weight_bits` (per channel, symmetric), `activation_bits` (per tensor, affine, unsigned); below 8 the weights lie on
    the coarser grid and are stored as int8, and activations cost ONNX Runtime its integer kernels. `ends_bits`: of the
    first and the last layer's weights. `method`: lsq learns each scale (Esser et al. 2020); ste keeps the observed
    ranges. `observer`: initial ranges, from a few training batches. `activations`: static ranges, learned or kept;
    dynamic, taken from each batch, for linear layers alone; auto is static where torch.fx can trace the network and it
    has no layer norm, attention or recurrence. Batch norm is folded.
    """

    use: ClassVar[str] = "fake_quantize"
    removes: ClassVar[bool] = False
    weight_bits: int = Field(default=8, ge=2, le=8)
    activation_bits: int = Field(default=8, ge=2, le=8)
    ends_bits: int = Field(default=8, ge=2, le=8)
    method: Literal["lsq", "ste"] = "lsq"
    observer: Observer = "mse"
    activations: Literal["auto", "static", "dynamic"] = "auto"

    def apply(self, module: nn.Module, evidence: Evidence) -> Compressed:
        if rewritten(module) is not None:
            raise RecipeError("the model has fake quantizers already; train it further with train or distill")
        refuse_closed(module, "qat")
        refuse_half(module, "qat")
        kept = protected(module, self.protect)
        refuse_without_weights(module, "qat", [path for path, _ in module.named_modules() if path not in kept])
        layout = self._layout(copyable(module), evidence)
        paths, notes = (_in_graph(module) if layout == "graph" else _linears(module)), _left_out(module, layout)
        chosen = [path for path in paths if path not in kept]
        if not chosen:
            raise RecipeError(
                f"qat: no layer can be quantized ({len(paths)} convolutions and linear layers, all in `protect`)"
                if paths
                else "qat: the model has no linear layer or convolution that can be quantized; "
                + "; ".join(f"{path}: {note}" for path, note in notes.items())
            )
        bits = dict.fromkeys(chosen, self.weight_bits)
        for path in {chosen[0], chosen[-1]}:
            bits[path] = self.ends_bits
        learned = self.method == "lsq"
        rewrite = FakeQuantizers(
            layout=layout, bits=bits, activation_bits=self.activation_bits, learned=learned, form=2
        )
        made = rewrite.apply(copy.deepcopy(module))
        self._settle(made, evidence)
        notes |= {path: "protected" for path in paths if path in kept}
        return Compressed(made, _changes(bits, notes))

    def _layout(self, module: nn.Module, evidence: Evidence) -> Literal["graph", "modules"]:
        if self.activations == "dynamic":
            reason = "dynamic"
        elif self.activations == "auto" and any(isinstance(each, SEQUENCE_LAYERS) for each in module.modules()):
            reason = "sequence"
        else:
            reason = traceable(module, evidence.args, dict(evidence.kwargs))
        if reason and self.activations == "static":
            raise RecipeError(f"activations: static needs a network that torch.fx can trace ({reason}); say dynamic")
        if reason and self.activation_bits != 8:
            raise RecipeError(f"activation_bits is {self.activation_bits}; dynamic activations have 8")
        return "modules" if reason else "graph"

    @torch.no_grad()
    def _settle(self, module: nn.Module, evidence: Evidence) -> None:
        """Ranges of weights, and of activations over a few training batches."""
        for each in module.modules():
            if isinstance(each, QuantizedLayer | DynamicLinear):
                each.quantizer.settle(each.weight, self.observer)
        values = {path: each for path, each in module.named_modules() if isinstance(each, ActivationQuantizer)}
        for each in values.values():
            each.watching = Observed()
        with evaluating(module):
            if values and evidence.passes is not None:
                evidence.passes(module)
            elif values:
                evidence.run(module)
        for path, each in values.items():
            each.settle(path, self.observer)


def _in_graph(module: nn.Module) -> list[str]:
    traced = trace(module)
    fold_batch_norm(traced)
    return quantizable(traced)


def _linears(module: nn.Module) -> list[str]:
    """Linear layers that are called as such: those inside torch's attention are not."""
    inside = [f"{path}." for path, each in module.named_modules() if isinstance(each, nn.MultiheadAttention)]
    return [
        path
        for path, each in module.named_modules()
        if isinstance(each, nn.Linear) and not any(path.startswith(prefix) for prefix in inside)
    ]


def _left_out(module: nn.Module, layout: str) -> dict[str, str]:
    """Layers with weights that no scheme here reaches, and why."""
    notes: dict[str, str] = {}
    for path, each in module.named_modules():
        if isinstance(each, nn.LSTM | nn.GRU | nn.RNN):
            notes[path] = "recurrent weights stay in float"
        elif isinstance(each, nn.MultiheadAttention):
            notes[path] = "torch's attention runs as one kernel, its weights stay in float"
        elif isinstance(each, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            notes[path] = "transposed convolutions have no int8 kernel"
        elif layout == "modules" and isinstance(each, CONVOLUTIONS):
            notes[path] = "convolutions need static ranges"
    if layout == "graph":
        for path in trace(module).fixed:
            notes[path or type(module).__name__] = (
                "its code asks for the training mode; it trains as it runs in eval mode"
            )
    return notes


def _changes(bits: dict[str, int], notes: dict[str, str]) -> tuple[Change, ...]:
    done = [Change(path, "bits", FLOAT, each) for path, each in bits.items()]
    return (*done, *(Change(path, "bits", FLOAT, FLOAT, note) for path, note in notes.items()))
