"""Attacks: small changes of the inputs that make a model wrong."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "attack",
    {
        "fgsm": "decoct.training.attacks.fgsm:FGSM",
        "pgd": "decoct.training.attacks.pgd:PGD",
    },
)
