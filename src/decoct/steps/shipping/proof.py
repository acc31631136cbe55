"""Proof: what every file must pass before it ships, whichever step or call writes it."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from decoct.errors import IntegrityError
from decoct.models.interface import Port
from decoct.models.modes import as_in_training
from decoct.models.onnx_file import open_session
from decoct.outputs import DENSE, Batch, Outputs
from decoct.steps.shipping.parity import Feed, Parity, compare
from decoct.targets.lowering import has_onnx_forms
from decoct.targets.onnx import FILE, save

if TYPE_CHECKING:
    import onnx

    from decoct.models.base import Network
    from decoct.tasks.base import Reading

ROUNDED = 0.25
"""Standard deviations of the output by which one answer of a file in integers may differ from its fake-quantized
model: the two add up in another order, and a value that falls on the other side of a half moves by a whole step."""
ROUNDED_MEAN = 0.01
"""The same for the mean over all answers: few values lie so near a half (measured: at most 0.0003 on convolutional
nets, MLPs and transformers at 4 and 8 bits), while a wrong scale or bias moves all of them."""
FAINT = 20.0
"""Decibels of signal to noise below which a quantized file is warned of: a tenth of the answers' size is noise."""


def refuse_other_file(
    where: str, program: nn.Module, parity: Parity, tolerance: float, samples: str = "real samples"
) -> float:
    """The largest difference that is allowed; IntegrityError where the file differs from torch by more.

    A program with fake quantizers inside, written in integers, may round otherwise.
    """
    one = parity.spread / parity.scale
    rounds = has_onnx_forms(program)
    allowed = max(tolerance, ROUNDED * one) if rounds else tolerance
    if not parity.max_abs_diff <= allowed:
        raise IntegrityError(
            f"{where}: the file differs from torch by {parity.max_abs_diff:.2g} on {parity.samples} {samples}; "
            f"tolerance is {allowed:g}. Raise it if that is acceptable, or look at the model"
        )
    most = max(tolerance, ROUNDED_MEAN * one)
    if rounds and not parity.mean <= most:
        raise IntegrityError(
            f"{where}: the file differs from torch by {parity.mean:.2g} on average over {parity.samples} {samples}, "
            f"more than values that are rounded the other way can do ({most:.2g}); look at the model"
        )
    return allowed


def refuse_other_graph(
    where: str,
    program: nn.Module,
    proto: onnx.ModelProto,
    feeds: Sequence[Feed],
    outputs: Mapping[str, Port],
    tolerance: float,
    samples: str = "real samples",
) -> None:
    """Runs a graph that is to be quantized beside torch; IntegrityError where it is not the model: then nothing that is
    made from it would be."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(save(proto, Path(folder) / FILE))
        parity = compare(program, session, feeds, outputs)
    refuse_other_file(f"{where}: before it is quantized", program, parity, tolerance, samples)


def refuse_other_program(
    where: str, reading: Reading, network: Network, program: nn.Module, batches: Sequence[Batch], tolerance: float
) -> None:
    """Asks the model as it is asked in training and scoring; IntegrityError where the program that becomes a file
    answers otherwise (it leaves out an input, say)."""
    for batch in batches:
        feed = {name: torch.from_numpy(value) for name, value in reading.feed(batch).items()}
        with torch.no_grad(), as_in_training():
            scored = reading.forward(network, batch, DENSE)
            raw = program(**feed)
        parts = raw if isinstance(raw, tuple) else (raw,)
        arrays = {name: part.numpy() for name, part in zip(reading.outputs, parts, strict=True)}
        for ours, theirs in _pairs(reading.from_file(arrays, batch), scored):
            if ours.shape != theirs.shape:
                raise IntegrityError(
                    f"{where}: the exported program gives answers {list(ours.shape)}, the model as it was scored "
                    f"{list(theirs.shape)}; look at how the model is called"
                )
            worst = float((ours.double() - theirs.double()).abs().max()) if ours.numel() else 0.0
            if not worst <= tolerance:
                raise IntegrityError(
                    f"{where}: the exported program, given {', '.join(feed)}, differs from the model as it was scored "
                    f"by {worst:.2g}; tolerance is {tolerance:g}. Look at what the model's forward takes"
                )


def _pairs(found: Outputs, scored: Outputs) -> Iterator[tuple[Tensor, Tensor]]:
    """Tensors that must be equal: what a file says of each head, at the places that count."""
    if found.logits is not None and scored.logits is not None:
        kept = found.mask if found.logits.shape == scored.logits.shape else None
        yield (found.logits, scored.logits) if kept is None else (found.logits[kept], scored.logits[kept])
    for name in found.values.keys() & scored.values.keys():
        if isinstance(found.values[name], Tensor) and isinstance(scored.values[name], Tensor):
            yield found.values[name], scored.values[name]
    for name, head in found.heads.items():
        yield from _pairs(head, scored.heads[name])


def warn_of_noise(where: str, verified: Mapping[str, Any], *, stacklevel: int = 3) -> None:
    """Warns of a quantized file whose answers are far from the float model's."""
    found = verified["sqnr_db"]
    if found is not None and found < FAINT:
        warnings.warn(
            f"{where}: the quantized file answers with {found:.1f} dB of signal to noise beside the float model, below "
            f"{FAINT:g} dB: noise is more than a tenth of its answers. Score it before it ships; protect layers, "
            "calibrate on more or other samples, quantize weights alone, or train with quantizers inside (qat)",
            stacklevel=stacklevel,
        )
