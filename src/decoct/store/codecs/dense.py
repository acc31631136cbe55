"""All classes of each row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from decoct.store.codecs import affine
from decoct.store.codecs.base import Codec, Decoded, Lost, checked, kl, raw, typed

FLOOR = torch.finfo(torch.float16).min


class DenseCodec(Codec):
    """Logits of all classes, as float32, float16 or uint8.

    `dtype`: how each number is kept, in one of these three forms.

    float32: bit for bit. float16: the distance of each logit from the largest of its row, which is kept beside it in
    float32; so nothing overflows, the logits come back unshifted, and the error is at most 2^-11 of that distance
    (where it is 65504 or more it comes back as 65504). uint8: at most 1/508 of the row's span; logits that lie more
    than 256 below the largest come back as -inf.
    """

    use: ClassVar[str] = "dense"
    dtype: Literal["float32", "float16", "uint8"] = "float16"

    def columns(self, classes: int) -> dict[str, int]:
        return {
            "float32": {"values": 4 * classes},
            "float16": {"values": 2 * classes, "largest": 4},
            "uint8": {"values": classes, "affine": 8},
        }[self.dtype]

    def encode(self, logits: Any, seen: np.ndarray) -> dict[str, np.ndarray]:
        values = checked(logits)
        if self.dtype == "float32":
            return {"values": raw(values)}
        if self.dtype == "float16":
            largest = values.amax(-1, keepdim=True)
            below = values - largest
            halves = below.clamp(min=FLOOR).masked_fill(below == -torch.inf, -torch.inf).half()
            return {"values": raw(halves), "largest": raw(largest)}
        codes, scale = affine.quantized(values)
        return {"values": raw(codes), "affine": raw(scale)}

    def decode(self, columns: Mapping[str, np.ndarray], classes: int) -> Decoded:
        if self.dtype == "float32":
            return typed(columns["values"], torch.float32)
        if self.dtype == "float16":
            return typed(columns["values"], torch.float16).float().add_(typed(columns["largest"], torch.float32))
        return affine.restored(typed(columns["values"], torch.uint8), typed(columns["affine"], torch.float32))

    def lost(self, logits: Any, decoded: Decoded) -> Lost:
        assert isinstance(decoded, Tensor)
        given = checked(logits).cpu().double()
        return Lost(kl(given.log_softmax(-1), decoded.double().log_softmax(-1)), 1.0)
