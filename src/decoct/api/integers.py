"""What `quantize` of `dc.export` means: the scheme, and whether layers stay in float for speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from decoct.errors import RecipeError, did_you_mean
from decoct.quantization import CATALOGUE as SCHEMES
from decoct.quantization.base import Feeds, Quantization, Quantized
from decoct.steps.shipping.keeping import faster

NAMES = ("int8", *SCHEMES)


@dataclass(frozen=True)
class Integers:
    """How a graph becomes integers: by which scheme, and whether what is faster in float stays so."""

    scheme: Quantization
    keep_float: bool

    def quantize(self, path: Path, proto: Any, feeds: Feeds | None, sample: Mapping[str, np.ndarray]) -> Quantized:
        """The graph in integers."""
        if self.keep_float:
            return faster(str(path), self.scheme, proto, feeds, None, sample)
        return self.scheme.quantize(proto, feeds, None)


def integers_of(quantize: str | Quantization | None, calibration: Any, keep_float: str | None) -> Integers | None:
    """The scheme that is meant, with the calibration data that it needs."""
    if keep_float not in (None, "auto"):
        raise RecipeError(
            f"keep_float is {keep_float!r}; allowed: 'auto', or None; name layers in the scheme's protect"
        )
    if quantize is None:
        for name, value in (("calibration", calibration), ("keep_float", keep_float)):
            if value is not None:
                raise RecipeError(f"{name} is for a quantized file; give quantize='int8' too, or leave it out")
        return None
    if isinstance(quantize, str):
        if quantize != "int8" and quantize not in SCHEMES:
            bits = "; for 4 bits give the scheme WeightOnly(bits=4)" if quantize.endswith("4") else ""
            hint = f"allowed: {', '.join(NAMES)}{bits}"
            raise RecipeError(f"quantize is {quantize!r}; {hint if bits else did_you_mean(quantize, NAMES)}")
        found = SCHEMES.resolve("static" if quantize == "int8" else quantize).parse({})
        assert isinstance(found, Quantization)
        quantize = found
    if quantize.calibrates and calibration is None:
        raise RecipeError(
            f"calibration is missing; {quantize.use} quantization needs a few hundred samples of training or "
            "validation data: calibration=loader, or a tensor"
        )
    return Integers(quantize, keep_float == "auto")
