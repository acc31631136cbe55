"""How a compressed student recovers, one way a file."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "recovery",
    {
        "after": "decoct.steps.recovery.after:After",
        "iterative": "decoct.steps.recovery.iterative:Iterative",
        "joint": "decoct.steps.recovery.joint:Joint",
        "layer_by_layer": "decoct.steps.recovery.layer_by_layer:LayerByLayer",
        "none": "decoct.steps.recovery.none:NoRecovery",
        "sparsify": "decoct.steps.recovery.sparsify:Sparsify",
    },
)
