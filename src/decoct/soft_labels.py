"""`label`: what a teacher says about one's own data, written once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from decoct.apply import alone
from decoct.arguments import chosen, data_of, model_of, shaped, task_of
from decoct.artifact import Artifact
from decoct.errors import RecipeError, did_you_mean
from decoct.models.base import KeptModel
from decoct.run import prepare_data
from decoct.steps.label import Label
from decoct.training.state import Randomness


def label(
    teacher: Any,
    data: Any,
    out: Path | str,
    *,
    task: Any = "image_classification",
    top_k: int | None = None,
    tail: str | None = None,
    dtype: str | None = None,
    offline: bool = False,
    watch: Callable[[Mapping[str, Any]], None] = lambda event: None,
    **settings: Any,
) -> Artifact:
    """Runs `teacher` once over the training data and writes a soft-label store to `out`.

    `teacher`: a module, a name such as "timm/resnet34", an artifact, a Model Spec. `data`: a Data Spec, or a DataLoader
    that gives each sample as training will (an augmentation that draws anew finds nothing again). `top_k`: keep the k
    largest log-probabilities, and of the others what `tail` says (bucket, uniform, sample); None keeps all classes.
    `dtype`: float16, uint8 or float32, which loses nothing. `settings` go to the Label step (`views`, `mix`,
    `features`, `splits`, `batch_size`, `workers`, ...). A store that is there already, of the same teacher, data and
    settings, is completed or repaired; any other is refused. Give it back as `dc.Stored(out)`.
    """
    given: dict[str, Any] = {}
    described = data_of(data, None, None, given)
    problem = task_of(task, raw=described.use == "given")
    if described.use == "given":
        problem = shaped(problem, data, {"teacher": teacher})
    model = model_of("teacher", teacher, given)
    _check(settings)
    short = {name: value for name, value in (("tail", tail), ("dtype", dtype)) if value is not None}
    if "keep" not in settings:
        kind = {"use": "dense"} if top_k is None else {"use": "top_k", "k": top_k}
        settings["keep"] = chosen("keep", "decoct.store.codecs", {**kind, **short})
    elif top_k is not None or short:
        raise RecipeError("label: keep says how logits are kept; leave top_k, tail and dtype out")
    step = Label(name="labels", inputs={"teacher": "teacher"}, **settings)
    opened, resolved = prepare_data(described, problem, offline=offline)
    randomness = Randomness()
    before = randomness.state_dict()
    try:
        value = model.open() if isinstance(model, KeptModel) else model
        return alone(step, {"teacher": value}, Path(out), opened, resolved, 0, given=given, watch=watch)
    finally:
        randomness.load_state_dict(before)


def _check(settings: Mapping[str, Any]) -> None:
    """RecipeError for a setting that the Label step does not have."""
    known = set(Label.model_fields) - {"name", "inputs"}
    for name in settings:
        if name not in known:
            raise RecipeError(
                f"label: {name!r} is no setting; {did_you_mean(name, [*known, 'top_k', 'tail', 'dtype'])}"
            )
