"""How a compressed student recovers, one way a file."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "recovery",
    {
        "after": "decoct.steps.compressing.recovery.after:After",
        "iterative": "decoct.steps.compressing.recovery.iterative:Iterative",
        "joint": "decoct.steps.compressing.recovery.joint:Joint",
        "layer_by_layer": "decoct.steps.compressing.recovery.layer_by_layer:LayerByLayer",
        "none": "decoct.steps.compressing.recovery.none:NoRecovery",
        "sparsify": "decoct.steps.compressing.recovery.sparsify:Sparsify",
    },
)
