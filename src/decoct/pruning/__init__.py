"""Pruning schemes, one a file."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "pruning scheme",
    {
        "channels": "decoct.pruning.channels:Channels",
        "heads": "decoct.pruning.heads:Heads",
        "layers": "decoct.pruning.layers:Layers",
        "magnitude": "decoct.pruning.magnitude:Magnitude",
        "movement": "decoct.pruning.movement:Movement",
        "n_m": "decoct.pruning.n_m:NM",
    },
)
