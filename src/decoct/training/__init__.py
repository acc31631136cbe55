"""The one training loop, its updates, schedules, checkpoints and guards."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "schedule",
    {
        "constant": "decoct.training.schedules:Constant",
        "cosine": "decoct.training.schedules:Cosine",
        "linear": "decoct.training.schedules:Linear",
    },
)
