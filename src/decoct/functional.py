"""Every pure loss function, as `torch.nn.functional` has them: student first, teacher second, a scalar out."""

from decoct.objectives.binary_kd import binary_kd_loss
from decoct.objectives.cross_entropy import cross_entropy
from decoct.objectives.kd import kd_loss
from decoct.objectives.logit_mse import logit_mse_loss
from decoct.objectives.regression_kd import regression_kd_loss
from decoct.objectives.soft_cross_entropy import soft_cross_entropy
from decoct.objectives.standardize import standardize_logits

__all__ = [
    "binary_kd_loss",
    "cross_entropy",
    "kd_loss",
    "logit_mse_loss",
    "regression_kd_loss",
    "soft_cross_entropy",
    "standardize_logits",
]
