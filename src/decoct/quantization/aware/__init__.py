"""Quantization-aware training: schemes that put fake quantizers into a network, one a file."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "quantization-aware scheme", {"fake_quantize": "decoct.quantization.aware.fake_quantize:FakeQuantize"}
)
