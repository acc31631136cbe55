"""Mixings: views made of two samples, one method a file."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "mixing",
    {
        "cutmix": "decoct.tasks.mixing.cutmix:CutMix",
        "mixup": "decoct.tasks.mixing.mixup:Mixup",
    },
)
