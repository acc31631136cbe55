"""Balances: weights of a sum's terms that follow how training goes, one method a file."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "balance",
    {
        "gradnorm": "decoct.objectives.balance.gradnorm:GradNorm",
        "loss_ratio": "decoct.objectives.balance.loss_ratio:LossRatio",
        "uncertainty": "decoct.objectives.balance.uncertainty:Uncertainty",
        "validation": "decoct.objectives.balance.validation:ValidationBalance",
    },
)
