"""Sharing schemes: weights used more than once, one scheme a file."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "sharing scheme",
    {
        "codebook": "decoct.sharing.codebook:Codebook",
        "layers": "decoct.sharing.layers:SharedLayers",
    },
)
