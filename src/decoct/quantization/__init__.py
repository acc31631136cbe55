"""Quantization schemes, one a file."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "quantization scheme",
    {
        "dynamic": "decoct.quantization.dynamic:Dynamic",
        "weight_only": "decoct.quantization.weight_only:WeightOnly",
    },
)
