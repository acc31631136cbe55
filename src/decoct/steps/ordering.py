"""Orders of steps that cannot work, found before anything runs."""

from __future__ import annotations

from decoct.steps.base import Step
from decoct.steps.compressing import Compressing
from decoct.steps.learning import Learning
from decoct.steps.prune import Prune
from decoct.steps.qat import QAT
from decoct.steps.quantize import Quantize
from decoct.steps.recovery.none import NoRecovery
from decoct.steps.recovery.sparsify import Sparsify
from decoct.steps.share import Share


def order_problem(step: Step, source: Step | None) -> str | None:
    """Why `step` cannot take what `source` gives as its model, and what to do; None where nothing is known against it.

    `source` is the step that its input "model" names, None for a model that no step of the recipe made.
    """
    if source is None:
        return None
    if isinstance(source, QAT) and isinstance(step, Compressing) and not isinstance(step, QAT):
        return (
            f"{source.name!r} is trained with its quantizers inside, and {step.use} changes the layers that they were "
            f"fitted to; put {step.use} before qat"
        )
    if isinstance(step, Quantize) and isinstance(source, Prune) and _unrecovered(source):
        return (
            f"{source.name!r} was cut and has not recovered: calibration would fit ranges to a network that answers "
            "at random; give the prune step a recovery (recover: {use: after}), or distill in between"
        )
    if isinstance(step, Learning) and _masked(source) and not _holds(step, source):
        return (
            f"{source.name!r} set weights to zero, and {step.use} trains them back; give the prune step a longer "
            "budget instead, or prune after this step"
        )
    if isinstance(source, Share) and isinstance(step, Prune) and source.scheme.use == "codebook":
        return f"{source.name!r} keeps its weights as indices into a codebook, which prune cannot cut; prune before it"
    return None


def _unrecovered(source: Prune) -> bool:
    return source.scheme.removes and isinstance(source.recover, NoRecovery)


def _masked(source: Step) -> bool:
    return isinstance(source, Prune) and not source.scheme.removes and not isinstance(source.recover, Sparsify)


def _holds(step: Learning, source: Step) -> bool:
    """Whether the step's own scheme keeps zeros as they are."""
    return isinstance(step, Prune) and not step.scheme.removes
