"""Every pure loss function, as `torch.nn.functional` has them: student first, teacher second, a scalar out."""

from decoct.objectives.activation_boundary import activation_boundary_loss
from decoct.objectives.adaptive_kl import adaptive_kl_loss
from decoct.objectives.afd import afd_loss
from decoct.objectives.ard import ard_loss
from decoct.objectives.attention_mse import attention_mse_loss
from decoct.objectives.attention_transfer import attention_transfer_loss
from decoct.objectives.balanced_cross_entropy import balanced_cross_entropy
from decoct.objectives.batch_correlation import batch_correlation_loss
from decoct.objectives.binary_kd import binary_kd_loss
from decoct.objectives.box_targets import box_target_loss
from decoct.objectives.channel_correlation import channel_correlation_loss
from decoct.objectives.channel_wise import channel_wise_loss
from decoct.objectives.class_correlation import class_correlation_loss
from decoct.objectives.correlation_congruence import correlation_congruence_loss
from decoct.objectives.crd import contrastive_loss
from decoct.objectives.cross_entropy import cross_entropy
from decoct.objectives.ctkd import ctkd_loss
from decoct.objectives.dist import dist_loss
from decoct.objectives.dkd import dkd_loss
from decoct.objectives.factor_transfer import factor_transfer_loss
from decoct.objectives.feature_discriminator import discriminator_loss, reverse_gradient
from decoct.objectives.focal_global import focal_global_loss
from decoct.objectives.forward_kl import forward_kl_loss
from decoct.objectives.fsp import fsp_loss
from decoct.objectives.head_alignment import head_alignment_loss
from decoct.objectives.hidden_cosine import hidden_cosine_loss
from decoct.objectives.hidden_mse import hidden_mse_loss
from decoct.objectives.hierarchical_context import hierarchical_context_loss
from decoct.objectives.hint import hint_loss
from decoct.objectives.jsd import jsd_loss
from decoct.objectives.kd import kd_loss
from decoct.objectives.layer_fusion import layer_fusion_loss
from decoct.objectives.linear_kd import Head, Labels, LinearKD, linear_kd_loss, linear_kd_parts
from decoct.objectives.localization import localization_loss
from decoct.objectives.logit_mse import logit_mse_loss
from decoct.objectives.nkd import nkd_loss
from decoct.objectives.nst import nst_loss
from decoct.objectives.ofd import ofd_loss, ofd_margin
from decoct.objectives.patient import patient_loss
from decoct.objectives.pearson_feature import pearson_feature_loss
from decoct.objectives.pkt import pkt_loss
from decoct.objectives.regression_kd import regression_kd_loss
from decoct.objectives.relation import relation_loss
from decoct.objectives.reverse_kl import reverse_kl_loss
from decoct.objectives.rkd import rkd_angle_loss, rkd_distance_loss
from decoct.objectives.rslad import rslad_loss
from decoct.objectives.similarity_preserving import similarity_preserving_loss
from decoct.objectives.skew_kl import skew_kl_loss
from decoct.objectives.skew_reverse_kl import skew_reverse_kl_loss
from decoct.objectives.soft_cross_entropy import soft_cross_entropy
from decoct.objectives.standardize import standardize_logits
from decoct.objectives.taylor_cross_entropy import taylor_cross_entropy_loss
from decoct.objectives.top_k_kl import top_k_cross_entropy, top_k_kl_loss
from decoct.objectives.total_variation import total_variation_loss
from decoct.objectives.uld import uld_loss
from decoct.objectives.vid import vid_loss
from decoct.objectives.wsld import wsld_loss

__all__ = [
    "Head",
    "Labels",
    "LinearKD",
    "activation_boundary_loss",
    "adaptive_kl_loss",
    "afd_loss",
    "ard_loss",
    "attention_mse_loss",
    "attention_transfer_loss",
    "balanced_cross_entropy",
    "batch_correlation_loss",
    "binary_kd_loss",
    "box_target_loss",
    "channel_correlation_loss",
    "channel_wise_loss",
    "class_correlation_loss",
    "contrastive_loss",
    "correlation_congruence_loss",
    "cross_entropy",
    "ctkd_loss",
    "discriminator_loss",
    "dist_loss",
    "dkd_loss",
    "factor_transfer_loss",
    "focal_global_loss",
    "forward_kl_loss",
    "fsp_loss",
    "head_alignment_loss",
    "hidden_cosine_loss",
    "hidden_mse_loss",
    "hierarchical_context_loss",
    "hint_loss",
    "jsd_loss",
    "kd_loss",
    "layer_fusion_loss",
    "linear_kd_loss",
    "linear_kd_parts",
    "localization_loss",
    "logit_mse_loss",
    "nkd_loss",
    "nst_loss",
    "ofd_loss",
    "ofd_margin",
    "patient_loss",
    "pearson_feature_loss",
    "pkt_loss",
    "regression_kd_loss",
    "relation_loss",
    "reverse_gradient",
    "reverse_kl_loss",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "rslad_loss",
    "similarity_preserving_loss",
    "skew_kl_loss",
    "skew_reverse_kl_loss",
    "soft_cross_entropy",
    "standardize_logits",
    "taylor_cross_entropy_loss",
    "top_k_cross_entropy",
    "top_k_kl_loss",
    "total_variation_loss",
    "uld_loss",
    "vid_loss",
    "wsld_loss",
]
