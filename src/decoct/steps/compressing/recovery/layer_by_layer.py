"""Each block learns to do what the same block of the uncompressed network does, then the whole."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field

from decoct.artifact import Artifact, Draft
from decoct.capture import recorded
from decoct.outputs import Batch, Needs
from decoct.steps.base import Context, Inputs
from decoct.steps.compressing.recovery.base import Recovery
from decoct.steps.compressing.recovery.blocks import errors, find_blocks, scaled
from decoct.steps.compressing.work import cut, learn_on, settled
from decoct.steps.learning.lesson import Begun, lesson
from decoct.steps.learning.saving import Student, save_student
from decoct.steps.records import REPORT
from decoct.teachers.contract import frozen
from decoct.training.base import ManagedUpdate
from decoct.training.blockwise import Block, Blockwise, Calls
from decoct.training.callback import CHOSEN, WithCallback, once_ready
from decoct.training.fit import History

if TYPE_CHECKING:
    from decoct.steps.compressing.compressing import Compressing

BLOCKS = "blocks.json"
"""The file with the error of each block before and after it was fitted."""


class LayerByLayer(Recovery):
    """Fits each block to the same one of the uncompressed student, then trains the whole on the step's objective.

    `blocks`: paths of the blocks, `*` for any part; "auto": the changed layers of equal input and output (of attention
    with fewer heads, the attention), else the nearest module around one. `share`: the part of the budget for the
    blocks; 1 leaves out the second part. All blocks learn at once, each fed what its original took, from its own error
    alone: mean squared error over the mean square of what it is to give. No labels are needed for it. In text, places
    of padding count too.
    """

    use: ClassVar[str] = "layer_by_layer"
    blocks: tuple[str, ...] | str = "auto"
    share: float = Field(default=0.3, gt=0, le=1)

    def run(self, step: Compressing, inputs: Inputs, context: Context) -> Artifact:
        if self.share == 1:
            return self._fit_blocks(step, inputs, context)
        alone = self.replace(share=1.0)
        first = step.replace(name="blocks", recover=alone, budget=step.budget.part(self.share), select="last")
        made = context.run(first, inputs)
        rest = step.replace(budget=step.budget.part(1 - self.share))

        def extra(draft: Draft) -> None:
            for name in (REPORT, BLOCKS):
                draft.write_json(name, made.json(name))

        return learn_on(rest, {**inputs, "model": made}, context, extra)

    def _fit_blocks(self, step: Compressing, inputs: Inputs, context: Context) -> Artifact:
        """The scheme at once, then its blocks for the whole budget."""
        objective, needs = settled(step, inputs, context)
        with lesson(step, inputs, context, needs, kinds=step.teachers) as opened:
            begun, changes = cut(step, opened, objective)
            original = opened.student
            blocks = find_blocks(self._patterns, changes, original.module, begun.lesson)
            history, report = _fit(step, begun, original, blocks)

        compression = begun.extra

        def extra(draft: Draft) -> None:
            compression(draft)
            draft.write_json(BLOCKS, report)

        return save_student(begun.lesson.student, history, context, extra=extra)

    @property
    def _patterns(self) -> tuple[str, ...] | None:
        if self.blocks == "auto":
            return None
        return (self.blocks,) if isinstance(self.blocks, str) else self.blocks


def _fit(
    step: Compressing, begun: Begun, original: Student, blocks: dict[str, Block]
) -> tuple[History, list[dict[str, object]]]:
    """Fits the blocks; the history, and the error of each before and after."""
    at_work = begun.lesson
    engine, task = at_work.engine, at_work.context.task
    with frozen(original.module, engine.device) as module:
        forward = replace(original, module=module).forward(task, Needs())

        def reference(batch: Batch) -> Calls:
            module.eval()
            with torch.no_grad(), engine.autocast(), recorded(module, blocks) as calls:
                forward(batch)
            return calls

        blocks = scaled(blocks, reference, at_work)
        before = errors(blocks, reference, at_work)
        optimizer = at_work.optimizer(*(block.module for block in blocks.values()))
        update: ManagedUpdate = Blockwise(
            reference, blocks, optimizer, engine, max_grad_norm=step.max_grad_norm, lr=step.optimizer.lr
        )
        validate, select = None, None
        if begun.callback is not None:
            update = WithCallback(update, begun.callback, optimizer)
            score = at_work.scoring(at_work.forward(Needs()))
            validate = once_ready(score, begun.callback, task.metric[0])
            select = (CHOSEN, task.metric[1])
        history = at_work.fit(
            update,
            at_work.source(step.samples),
            validate,
            select,
            student=at_work.student.module,
            optimizer=optimizer,
        )
        after = errors(blocks, reference, at_work)
    return history, [{"path": path, "before": before[path], "after": after[path]} for path in blocks]
