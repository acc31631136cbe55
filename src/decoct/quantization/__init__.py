"""Quantization schemes, one a file."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "quantization scheme",
    {
        "static": "decoct.quantization.static:Static",
        "dynamic": "decoct.quantization.dynamic:Dynamic",
        "weight_only": "decoct.quantization.weight_only:WeightOnly",
    },
)
