"""The one training loop, its updates, schedules, checkpoints and guards."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "schedule",
    {
        "constant": "decoct.training.schedules:Constant",
        "linear": "decoct.training.schedules:Linear",
    },
)
