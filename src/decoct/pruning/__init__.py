"""Pruning schemes, one a file."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "pruning scheme",
    {
        "magnitude": "decoct.pruning.magnitude:Magnitude",
        "movement": "decoct.pruning.movement:Movement",
        "n_m": "decoct.pruning.n_m:NM",
    },
)
