"""Parity: how far the answers of a file are from those of the program that it was made from, by kind of output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from decoct.models.interface import Port, PortKind
from decoct.models.modes import as_in_training
from decoct.quantization.sensitivity import sqnr_db
from decoct.targets.base import Session

NEAR = 0.1
"""Standard deviations within which numbers of a quantized file count as answered alike."""
ALIKE = 1e-3
"""The same for numbers of a float file."""
AS_THEY_ARE = ("logits", "ids")
"""Kinds of outputs whose differences are not divided by their standard deviation."""
Feed = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Parity:
    """How far a file is from torch: the largest difference of an output (`scale` 1: absolute; else divided by it), the
    share of samples answered alike, over how many samples, the standard deviation of torch's outputs, and the mean
    difference."""

    max_abs_diff: float
    agreement: float
    samples: int
    scale: float = 1.0
    spread: float = 0.0
    mean: float = 0.0

    def data(self) -> dict[str, float]:
        """As it stands in results."""
        extra = {"scale": self.scale} if self.scale != 1.0 else {}
        return {"max_abs_diff": self.max_abs_diff, "agreement": self.agreement, "samples": self.samples, **extra}


def compare(program: nn.Module, session: Session, feeds: Sequence[Feed], outputs: Mapping[str, Port]) -> Parity:
    """Runs file and torch program on the same real inputs, whole batches and the first sample alone.

    Class logits are compared as they are; numbers are divided by the standard deviation of torch's answers; ids agree
    or not. Of several outputs the worst is told.
    """
    asked = [*feeds, {name: value[:1] for name, value in feeds[0].items()}]
    found, expected, samples = answers(program, session, asked, outputs)
    each = [_of_one(port, found[name], expected[name], samples - 1) for name, port in outputs.items()]
    worst = max(each, key=lambda one: one.max_abs_diff)
    return Parity(
        worst.max_abs_diff, min(one.agreement for one in each), samples - 1, worst.scale, worst.spread, worst.mean
    )


def against_float(
    program: nn.Module, session: Session, feeds: Sequence[Feed], outputs: Mapping[str, Port]
) -> dict[str, Any]:
    """How the answers of a quantized file differ from the float model's on the same real inputs.

    `max_abs_diff` and `mean_abs_diff` of logits (numbers: in standard deviations of the float answers, `scale`),
    `agreement` the share of samples with the same class (numbers: all within 0.1 standard deviations; ids: equal),
    `sqnr_db` the signal-to-noise ratio of the answers, 10 log10(sum of squares / sum of squared differences). Of
    several outputs the one with the most noise is told.
    """
    found, expected, samples = answers(program, session, feeds, outputs)
    each = [
        {**differences(found[name], expected[name], kind=port.kind), "samples": samples}
        for name, port in outputs.items()
    ]
    return min(each, key=lambda one: np.inf if one["sqnr_db"] is None else one["sqnr_db"])


def differences(found: np.ndarray, expected: np.ndarray, *, kind: PortKind = "logits") -> dict[str, Any]:
    """The record of `against_float` for answers `[N, ...]`, the class axis last."""
    scale = _scale(kind, expected)
    off = np.abs(found - expected) / scale
    worst = float(off.max())
    return {
        "against": "float",
        "max_abs_diff": worst if np.isfinite(worst) else float("inf"),
        "mean_abs_diff": float(off.mean()),
        "agreement": _agreement(kind, found, expected, off <= NEAR),
        "samples": len(found),
        "sqnr_db": sqnr_db(found, expected),
        **({} if kind in AS_THEY_ARE else {"scale": scale}),
    }


def answers(
    program: nn.Module, session: Session, feeds: Sequence[Feed], outputs: Mapping[str, Port]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int]:
    """What file and program say, float64 by output, all places of all samples in rows; and how many samples."""
    ours: dict[str, list[np.ndarray]] = {name: [] for name in outputs}
    theirs: dict[str, list[np.ndarray]] = {name: [] for name in outputs}
    samples = 0
    for feed in feeds:
        with torch.no_grad(), as_in_training():
            result = program(**{name: torch.tensor(value) for name, value in feed.items()})
        parts = result if isinstance(result, tuple) else (result,)
        again = session(feed)
        for name, part in zip(outputs, parts, strict=True):
            theirs[name].append(_rows(part.double().numpy()))
            ours[name].append(_rows(again[name].astype(np.float64)))
        samples += len(parts[0])
    return _joined(ours), _joined(theirs), samples


def _joined(parts: Mapping[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate(each) for name, each in parts.items()}


def _rows(value: np.ndarray) -> np.ndarray:
    """`[N, ...]` with one row for each place, the last axis kept: batches may differ in length."""
    return value.reshape(-1, value.shape[-1] if value.ndim > 1 else 1)


def _of_one(port: Port, found: np.ndarray, expected: np.ndarray, samples: int) -> Parity:
    scale = _scale(port.kind, expected)
    difference = np.abs(found - expected) / scale
    agreement = _agreement(port.kind, found, expected, difference <= ALIKE)
    worst = float(difference.max())
    worst = worst if np.isfinite(worst) else float("inf")
    return Parity(worst, agreement, samples, scale, float(expected.std()), float(difference.mean()))


def _scale(kind: PortKind, expected: np.ndarray) -> float:
    return 1.0 if kind in AS_THEY_ARE else float(expected.std()) or 1.0


def _agreement(kind: PortKind, found: np.ndarray, expected: np.ndarray, near: np.ndarray) -> float:
    """The share answered alike: by logits the same class, the same ids, or all numbers of a row `near`."""
    if kind == "logits":
        found, expected = found.argmax(axis=-1), expected.argmax(axis=-1)
    if kind in AS_THEY_ARE:
        return float(np.mean(found == expected))
    return float(near.reshape(len(near), -1).all(axis=1).mean())
