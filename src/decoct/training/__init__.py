"""The one training loop, its updates, schedules, checkpoints and guards."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "schedule",
    {
        "constant": "decoct.training.schedules:Constant",
        "cosine": "decoct.training.schedules:Cosine",
        "exponential": "decoct.training.schedules:Exponential",
        "linear": "decoct.training.schedules:Linear",
        "release": "decoct.training.schedules:Release",
        "step": "decoct.training.schedules:StepDecay",
    },
)
