"""What all tasks with one model call and one target share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from decoct.capture import capture
from decoct.data.base import Split
from decoct.errors import RecipeError
from decoct.outputs import Batch, Needs, Outputs, Predictor
from decoct.tasks.base import Side, Task
from decoct.tasks.calls import Kind, call, logits_of
from decoct.tasks.remember import Remembered

TARGETS = ("target", "label", "labels")
SIDES = ("student", "teacher")

_PREPARED: Remembered[nn.Module] = Remembered()


class Supervised(Task):
    """A task in which a model is called once on each batch and its logits meet one target.

    `raw`: inputs reach the models as they come (preprocessing is the identity), as a user's own loaders give them.
    """

    raw: bool = False

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """What the models take."""

    @abstractmethod
    def target_of(self, value: Any) -> Tensor:
        """A target from a user's loader as `loss` takes it, on the CPU or where it was."""

    @abstractmethod
    def unlabelled(self, count: int) -> Tensor:
        """The target of `count` samples without labels."""

    @abstractmethod
    def labelled(self, batch: Batch) -> Tensor:
        """Bool `[B]`: which samples count in the loss."""

    def forward(self, model: nn.Module, batch: Batch, needs: Needs, side: Side) -> Outputs:
        if needs.gradient:
            raise RecipeError(f"{self.use}: gradients to the inputs are not available for this task")
        inputs = self._prepared(side, batch.side(side))
        if not needs.features:
            return self.outputs(call(model, self.kind, inputs))
        with capture(model, sorted(needs.features)) as features:
            raw = call(model, self.kind, inputs)
        return replace(self.outputs(raw), features=dict(features))

    def items(self, batch: Batch) -> Tensor | int:
        return self.labelled(batch).sum()

    def from_loader(self, item: Any) -> Batch:
        inputs, target = _inputs_and_target(item)
        for side, value in inputs.items():
            _check_inputs(self.kind, side, value)
        if target is None:
            count = len(Batch(inputs))
            return Batch(inputs, self.unlabelled(count), torch.zeros(count, dtype=torch.bool))
        batch = Batch(inputs, self.target_of(target))
        if len(batch.target) != len(batch):
            raise RecipeError(
                f"the loader yields {len(batch)} inputs with {len(batch.target)} targets; they must agree"
            )
        labelled = self.labelled(batch)
        if labelled.device.type == "cpu" and bool(labelled.all()):  # elsewhere the question would wait for the device
            return batch
        return replace(batch, labelled=labelled)

    def _prepared(self, side: Side, inputs: Any) -> Any:
        if self.raw or self.kind == "text":
            return inputs
        device = inputs.device
        module = _PREPARED.get(self, (side, device), lambda: self.preprocessing(side).to(device).eval())
        return module(inputs)


def batch_of(
    split: Split,
    indices: np.ndarray,
    inputs: Mapping[str, Any],
    target: Tensor,
    view: int,
    seen: np.ndarray | None = None,
) -> Batch:
    """The Batch of samples whose inputs and (already masked) target are made; `seen` where it is not their keys."""
    keys = split.keys[indices]
    labelled = None if split.labelled is None else torch.from_numpy(split.labelled[indices])
    if not {"label", "value"} & split.columns.keys():
        labelled = torch.zeros(len(indices), dtype=torch.bool)
    return Batch(inputs, target, labelled, keys, view, seen=keys if seen is None else seen)


def predictions(predict: Predictor, batches: Iterable[Batch]) -> Iterator[tuple[Batch, np.ndarray]]:
    """Each batch with its logits in float64 on the CPU."""
    for batch in batches:
        yield batch, logits_on(predict, batch)


def logits_on(predict: Predictor, batch: Batch) -> np.ndarray:
    """A predictor's logits of one batch, float64 on the CPU; RecipeError where it gives none."""
    with torch.no_grad():
        logits = predict(batch).logits
    if logits is None:
        raise RecipeError("the predictor gives no logits")
    found: np.ndarray = logits.detach().cpu().double().numpy()
    return found


def checked_logits(raw: Any, outputs: int) -> Tensor:
    """Logits `[B, outputs]` of what a model returned; any width where `outputs` is 0 (not known)."""
    logits = logits_of(raw)
    if logits.ndim != 2 or (outputs and logits.shape[1] != outputs):
        expected = f"[batch, {outputs or 'classes'}]"
        raise RecipeError(f"the model returned logits {list(logits.shape)}; expected {expected}")
    return logits


def feed_arrays(kind: Kind, inputs: Any) -> dict[str, np.ndarray]:
    """Inputs of a batch under the names of the exported file."""
    if kind == "text":
        return {name: inputs[name].cpu().numpy() for name in ("input_ids", "attention_mask")}
    return {"image" if kind == "image" else "features": inputs.cpu().numpy()}


def shape_of(inputs: Any) -> tuple[int, ...]:
    """The shape of one sample."""
    tensor = inputs["input_ids"] if isinstance(inputs, Mapping) else inputs
    return tuple(tensor.shape[1:])


def _inputs_and_target(item: Any) -> tuple[dict[str, Any], Any]:
    if isinstance(item, Mapping):
        return _from_mapping(item)
    parts: Sequence[Any] = [item] if isinstance(item, Tensor) else item
    if isinstance(parts, list | tuple) and 1 <= len(parts) <= 3:
        if len(parts) == 3:
            return {"student": parts[0], "teacher": parts[1]}, parts[2]
        return dict.fromkeys(SIDES, parts[0]), parts[1] if len(parts) == 2 else None
    count = f" of {len(item)}" if isinstance(item, list | tuple) else ""
    raise RecipeError(
        f"the loader yields a {type(item).__name__}{count}; expected (inputs, target), "
        "(student_inputs, teacher_inputs, target), or a mapping with target, label or labels"
    )


def _from_mapping(item: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    names = [name for name in TARGETS if name in item]
    if len(names) > 1:
        raise RecipeError(f"the loader yields both {' and '.join(names)}; keep one as the target")
    rest = {name: value for name, value in item.items() if name not in names}
    target = item[names[0]] if names else None
    if set(rest) == set(SIDES):
        return rest, target
    if not rest:
        raise RecipeError(f"the loader yields a mapping with {', '.join(item)} and no inputs")
    alone = next(iter(rest.values())) if len(rest) == 1 and "input_ids" not in rest else rest
    return dict.fromkeys(SIDES, alone), target


def _check_inputs(kind: Kind, side: str, value: Any) -> None:
    if isinstance(value, Tensor) or (kind == "text" and isinstance(value, Mapping) and "input_ids" in value):
        return
    what = f"a mapping with {', '.join(map(str, value))}" if isinstance(value, Mapping) else f"a {type(value).__name__}"
    expected = "a mapping with input_ids" if kind == "text" else "one tensor"
    raise RecipeError(
        f"the loader's {side} inputs are {what}; a {kind} task takes {expected}: give the task that they belong to, as "
        'task="text_classification"'
    )
