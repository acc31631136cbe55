"""What the Python surface takes: modules, names, loaders and Specs, each as the Spec that it stands for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from decoct.artifact import Artifact
from decoct.data.base import Data
from decoct.data.given import describe_loaders
from decoct.errors import DataError, RecipeError
from decoct.models.base import Model, shorthand
from decoct.models.black_box import given_function
from decoct.models.estimator_file import Fitted, refuse_no_estimator
from decoct.models.given import given_model
from decoct.models.saved import Saved
from decoct.models.stored import Stored
from decoct.outputs import DENSE, Batch
from decoct.spec import Choice, Spec, as_recipe_error
from decoct.tasks.base import Task
from decoct.teachers.frozen import Frozen


def data_of(train: Any, val: Any, test: Any, given: dict[str, Any]) -> Data:
    """The Data Spec of what came as splits; loaders go into `given`."""
    if isinstance(train, Data):
        if val is not None or test is not None:
            raise RecipeError("train is a Data Spec, which has its own splits; leave val and test out")
        return train
    loaders = {"train": train, "validation": val, "test": test}
    given["loaders"] = {name: loader for name, loader in loaders.items() if loader is not None}
    for name, loader in given["loaders"].items():
        if isinstance(loader, Iterator):
            raise DataError(
                f"{name} is a {type(loader).__name__}, which is used up after one pass; give a DataLoader, a list of "
                "its batches, or an object whose __iter__ begins anew"
            )
    return describe_loaders("loaders", given["loaders"])


def loader_of(value: Any, batch_size: int, *, shuffle: bool = False) -> Any:
    """A torch data set as the loader of its samples; whatever else came as it is."""
    if isinstance(value, Dataset) and not isinstance(value, IterableDataset):
        return DataLoader(value, batch_size=batch_size, shuffle=shuffle)
    return value


def task_of(task: Any, *, raw: bool) -> Task:
    """The Task of a name or Spec; `raw` where inputs come prepared."""
    if isinstance(task, str):
        task = {"use": task, "raw": True} if raw else {"use": task}
    found = chosen("task", "decoct.tasks", task)
    assert isinstance(found, Task)
    return found.as_given() if raw else found


def chosen(what: str, package: str, value: Any) -> Spec:
    """The Spec that `value` is or describes; RecipeError says which argument was wrong."""
    try:
        found = Choice(package).validate(shorthand(value) if package == "decoct.models" else value)
    except ValidationError as error:
        raise as_recipe_error(error, what) from None
    except ValueError as error:
        raise RecipeError(f"{what}: {error}") from None
    assert isinstance(found, Spec)
    return found


def shaped(task: Task, loader: Any, models: Mapping[str, Any]) -> Task:
    """The task with the shapes of the loader's first batch and as many outputs as a given module has."""
    with torch.random.fork_rng():
        batch = next((task.from_loader(item) for item in loader), None)
    if batch is None:
        raise DataError("the training loader gave no batch; is it empty, or a generator that was used up?")
    for side, model in models.items():
        if isinstance(model, nn.Module):
            return task.shaped_by(batch, _width(task, model, batch, side))
    if not isinstance(batch.target, Tensor) or batch.target.is_floating_point():
        return task.shaped_by(batch, 1 if batch.target.ndim == 1 else batch.target.shape[-1])
    if task.answer.names:
        return task.shaped_by(batch, len(task.answer.names))
    highest = max(int(task.from_loader(item).target.max()) for item in loader)
    return task.shaped_by(batch, highest + 1)


def _width(task: Task, model: nn.Module, batch: Batch, side: str) -> int:
    """How many numbers a module gives for one item; the module is left as it was."""
    if isinstance(batch.target, Tensor) and batch.target.is_floating_point():
        return 1 if batch.target.ndim == 1 else batch.target.shape[-1]
    with Frozen().open(model, task.reading(side), DENSE) as predict:
        logits = predict(batch).logits
    if logits is None:
        raise RecipeError(f"the {side} gives no logits: return a tensor, or an object with `.logits`")
    return logits.shape[-1]


def model_of(name: str, value: Any, given: dict[str, Any]) -> Model:
    """The Model Spec of a module, name, path, artifact or Spec, of a fitted model of scikit-learn, or of a function
    from samples to labels; what cannot be written down goes into `given`."""
    if hasattr(value, "n_features_in_"):  # a fitted model of scikit-learn, or one with its interface
        value = Fitted(refuse_no_estimator(value, name))
    if isinstance(value, nn.Module):
        given[name] = value
        return given_model(name, value)
    if callable(value) and not isinstance(value, Model | type):
        given[name] = value
        return given_function(name, value)
    if isinstance(value, Artifact):
        return Stored(path=value.folder) if value.kind == "store" else Saved(path=value.folder)
    found = chosen(name, "decoct.models", value)
    assert isinstance(found, Model)
    return found
