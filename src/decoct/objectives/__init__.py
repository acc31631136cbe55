"""Objectives: what a student is taught by, one method a file, and the algebra that joins them."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "objective",
    {
        "binary_kd": "decoct.objectives.binary_kd:BinaryKD",
        "cross_entropy": "decoct.objectives.cross_entropy:CrossEntropy",
        "kd": "decoct.objectives.kd:KD",
        "logit_mse": "decoct.objectives.logit_mse:LogitMSE",
        "regression_kd": "decoct.objectives.regression_kd:RegressionKD",
        "soft_cross_entropy": "decoct.objectives.soft_cross_entropy:SoftCrossEntropy",
        "sum": "decoct.objectives.base:Sum",
        "task_loss": "decoct.objectives.task_loss:TaskLoss",
    },
)
