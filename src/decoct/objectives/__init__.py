"""Objectives: what a student is taught by, one method a file, and the algebra that joins them."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "objective",
    {
        "sum": "decoct.objectives.base:Sum",
        "task_loss": "decoct.objectives.task_loss:TaskLoss",
        "cross_entropy": "decoct.objectives.cross_entropy:CrossEntropy",
        "kd": "decoct.objectives.kd:KD",
    },
)
