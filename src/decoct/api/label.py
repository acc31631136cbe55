"""`label`: what a teacher says about one's own data, written once."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, RandomSampler

from decoct.api.arguments import chosen, data_of, loader_of, model_of, shaped, task_of
from decoct.artifact import Artifact
from decoct.data.views import seen_of
from decoct.errors import RecipeError, did_you_mean
from decoct.models.base import KeptModel
from decoct.runner.apply import alone
from decoct.runner.execution import prepare_data
from decoct.steps.labelling.step import Label
from decoct.store.reading import Store
from decoct.training.state import Randomness

if TYPE_CHECKING:
    from decoct.tasks.base import Task


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

    `teacher`: a module, a name such as "timm/resnet34", an artifact, a Model Spec, a path of what is pretrained, a
    fitted model of scikit-learn. `data`: a Data Spec, a torch data set, or a DataLoader that gives each sample as
    training will: a warning says where another pass of it gives samples that the store does not hold (a teacher that
    answers at random is not looked for). `top_k`: keep the k largest log-probabilities, and of the others what `tail`
    says (bucket, uniform, sample); None keeps all classes.
    `dtype`: float16, uint8 or float32, which loses nothing. `settings` go to the Label step (`views`, `mix`,
    `features`, `splits`, `batch_size`, `workers`, ...). A store that is there already, of the same teacher, data and
    settings, is completed or repaired; any other is refused. Give it back as `dc.Stored(out)`.
    """
    _check(settings)
    short = {name: value for name, value in (("tail", tail), ("dtype", dtype)) if value is not None}
    if "keep" not in settings:
        kind = {"use": "dense"} if top_k is None else {"use": "top_k", "k": top_k}
        settings["keep"] = chosen("keep", "decoct.store.codecs", {**kind, **short})
    elif top_k is not None or short:
        raise RecipeError("label: keep says how logits are kept; leave top_k, tail and dtype out")
    step = Label(name="labels", inputs={"teacher": "teacher"}, **settings)
    randomness = Randomness()
    before = randomness.state_dict()
    try:
        return _label(step, teacher, data, Path(out), task, offline=offline, watch=watch)
    finally:
        randomness.load_state_dict(before)


def _label(
    step: Label,
    teacher: Any,
    data: Any,
    out: Path,
    task: Any,
    *,
    offline: bool,
    watch: Callable[[Mapping[str, Any]], None],
) -> Artifact:
    given: dict[str, Any] = {}
    data = loader_of(data, step.batch_size)
    described = data_of(data, None, None, given)
    problem = task_of(task, raw=described.use == "given")
    if described.use == "given":
        problem = shaped(problem, data, {"teacher": teacher})
    model = model_of("teacher", teacher, given)
    opened, resolved = prepare_data(described, problem, offline=offline)
    value = model.open() if isinstance(model, KeptModel) else model
    made = alone(step, {"teacher": value}, out, opened, resolved, 0, given=given, watch=watch)
    for split in step.splits if described.use == "given" else ():
        _warn_of_other_samples(made, given["loaders"][split], resolved)
    return made


def _check(settings: Mapping[str, Any]) -> None:
    """RecipeError for a setting that the Label step does not have."""
    known = set(Label.model_fields) - {"name", "inputs"}
    for name in settings:
        if name not in known:
            raise RecipeError(
                f"label: {name!r} is no setting; {did_you_mean(name, [*known, 'top_k', 'tail', 'dtype'])}"
            )


ANOTHER_PASS = 0xDEC0C7
"""The random state in which a loader is asked once more; any but the one that it was read in."""


def _warn_of_other_samples(made: Artifact, loader: Iterable[Any], task: Task) -> None:
    """Warns where the first batch of another pass over a loader holds samples that the store does not."""
    with _generators_kept(loader):
        torch.default_generator.manual_seed(ANOTHER_PASS)
        np.random.seed(ANOTHER_PASS)
        random.seed(ANOTHER_PASS)
        batch = next((task.from_loader(item) for item in islice(loader, 1)), None)
    if batch is None:
        return
    held = Store.open(made.folder, verify="index", cache_bytes=0).contains(seen_of(batch))
    absent = int((~held).sum())
    if absent:
        warnings.warn(
            f"label: the loader was read once more, and {absent} of the first {len(held)} samples are none that the "
            f"store {made.folder} holds, so a student that reads this loader will not find them. Does it augment at "
            "random, or leave samples out (drop_last, a sampler)? Label from a loader that gives all samples, without "
            "random augmentation, and train on that one; or give a data set that decoct reads, such as dc.ImageFolder, "
            "with the task's augment, and views",
            stacklevel=4,
        )


@contextmanager
def _generators_kept(loader: Iterable[Any]) -> Iterator[None]:
    """After the body the generators of a DataLoader and its sampler are as before."""
    found: list[torch.Generator] = []
    if isinstance(loader, DataLoader):
        sampler = loader.sampler.generator if isinstance(loader.sampler, RandomSampler) else None
        found = [each for each in (loader.generator, sampler) if each is not None]
    states = [each.get_state() for each in found]
    try:
        yield
    finally:
        for each, state in zip(found, states):
            each.set_state(state)
