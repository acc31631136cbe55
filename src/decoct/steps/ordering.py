"""Orders of steps that cannot work, found before anything runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from decoct.steps.base import Step

if TYPE_CHECKING:
    from decoct.steps.compressing.prune import Prune
    from decoct.steps.compressing.rewrite import Rewrite
    from decoct.steps.learning.settings import Learning

RESHAPING = ("qat", "prune", "rewrite", "share")
"""Steps after which not every other can come; the modules of none are imported before one stands in a recipe."""


def order_problem(step: Step, source: Step | None) -> str | None:
    """Why `step` cannot take what `source` gives as its model, and what to do; None where nothing is known against it.

    `source` is the step that its input "model" names, None for a model that no step of the recipe made.
    """
    if source is None or (source.use not in RESHAPING and type(source).__module__.startswith("decoct.")):
        return None  # a plug-in's own may inherit from one of them
    from decoct.steps.compressing.compressing import Compressing
    from decoct.steps.compressing.prune import Prune
    from decoct.steps.compressing.qat import QAT
    from decoct.steps.compressing.rewrite import Rewrite
    from decoct.steps.compressing.share import Share
    from decoct.steps.learning.settings import Learning
    from decoct.steps.shipping.quantize import Quantize

    if isinstance(source, QAT) and isinstance(step, Compressing) and not isinstance(step, QAT):
        return (
            f"{source.name!r} is trained with its quantizers inside, and {step.use} changes the layers that they were "
            f"fitted to; put {step.use} before qat"
        )
    if isinstance(step, Quantize) and isinstance(source, Prune | Rewrite) and _unrecovered(source):
        done = "cut" if isinstance(source, Prune) else "rewritten"
        return (
            f"{source.name!r} was {done} and has not recovered: calibration would fit ranges to a network that answers "
            f"at random; give the {source.use} step a recovery (recover: {{use: after}}), or distill in between"
        )
    if isinstance(step, Learning) and _masked(source) and not _holds(step, source):
        return (
            f"{source.name!r} set weights to zero, and {step.use} trains them back; give the prune step a longer "
            "budget instead, or prune after this step"
        )
    if isinstance(source, Share) and isinstance(step, Prune) and source.scheme.use == "codebook":
        return f"{source.name!r} keeps its weights as indices into a codebook, which prune cannot cut; prune before it"
    return None


def quantized_already(step: Step, behind: Iterable[Step]) -> str | None:
    """Why `step` cannot quantize: what it takes is in integers; `behind` it are these steps, the nearest first."""
    line = list(behind) if step.use == "quantize" else []
    if not line:
        return None
    source = line[0]
    learned = source.use == "export" and any(each.use == "qat" for each in line)
    if source.use == "quantize" or learned:
        return (
            f"{source.name!r} writes a file in integers already; leave {step.name!r} out, or give it the float model "
            "that the file was made from"
        )
    return None


def _unrecovered(source: Prune | Rewrite) -> bool:
    from decoct.steps.compressing.recovery.none import NoRecovery

    return source.scheme.removes and isinstance(source.recover, NoRecovery)


def _masked(source: Step) -> bool:
    from decoct.steps.compressing.prune import Prune
    from decoct.steps.compressing.recovery.sparsify import Sparsify

    return isinstance(source, Prune) and not source.scheme.removes and not isinstance(source.recover, Sparsify)


def _holds(step: Learning, source: Step) -> bool:
    """Whether the step's own scheme keeps zeros as they are."""
    from decoct.steps.compressing.prune import Prune
    from decoct.steps.compressing.share import Share

    if isinstance(step, Share):
        return step.scheme.use == "codebook"  # of pruned weights one centroid is zero and stays so
    return isinstance(step, Prune) and not step.scheme.removes
