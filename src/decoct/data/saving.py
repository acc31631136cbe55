"""Samples as an artifact of kind `data`: what a step made of others, or wrote anew, for later steps to train on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from decoct.artifact import Artifact, Draft, FileName, Strict, understood
from decoct.data.base import Dataset, Split
from decoct.data.lazy import LazyColumn
from decoct.errors import DataError, RecipeError

RECORD = "data.json"
"""The file that says which columns there are, in which form, and of which classes the labels are."""
TARGETS = ("label", "value")


class Recorded(Strict):
    """Shape of data.json."""

    columns: dict[FileName, Literal["array", "texts", "arrays"]]
    beside: list[Literal["keys", "labelled", "group"]]
    classes: list[str]
    features: list[str]


def save_data(draft: Draft, split: Split, *, classes: Sequence[str] = (), features: Sequence[str] = ()) -> None:
    """Writes samples into an artifact of kind `data`, from which `load_data` makes them again, bit for bit.

    Columns as in Split: an array as `NAME.npy`, a list of texts as JSON lines, a list of arrays of one type as the
    array of all their numbers and their shapes; `label` or `value` may be left out, as of samples that a model wrote.
    `classes`: the names of the ids in `label`. DataError where columns differ in length or hold anything else.
    """
    forms = {}
    for name, column in split.columns.items():
        if len(column) != len(split):
            raise DataError(
                f"column {name!r} has {len(column)} entries, and there are {len(split)} keys; give one each"
            )
        forms[name] = _write(draft, name, column)
    arrays = {"keys": split.keys, "labelled": split.labelled, "group": split.group}
    kept = {name: each for name, each in arrays.items() if each is not None}
    for name, each in kept.items():
        np.save(draft.folder / f".{name}.npy", each, allow_pickle=False)
    found = {"samples": len(split), "columns": forms, "beside": sorted(kept)}
    draft.write_json(RECORD, {**found, "classes": list(classes), "features": list(features)})


def load_data(artifact: Artifact) -> Dataset:
    """The samples of an artifact of kind `data` as split "train"; the fingerprint is the artifact's hash.

    RecipeError for an artifact of another kind.
    """
    if artifact.kind != "data":
        raise RecipeError(f"{artifact.folder} is of kind {artifact.kind} and holds no samples; give one of kind data")
    record = artifact.json(RECORD, Recorded)
    with understood(artifact.folder / RECORD):
        columns = {name: _read(artifact, name, form) for name, form in record["columns"].items()}
        beside = {name: _array(artifact, f".{name}.npy") for name in record["beside"]}
        split = Split(columns, **beside)
    return Dataset({"train": split}, artifact.hash, tuple(record["classes"]), tuple(record["features"]))


def with_train(data: Dataset, artifact: Artifact) -> Dataset:
    """The data with an artifact's samples as their training split; the fingerprint follows both.

    Samples without targets count as unlabelled. RecipeError where the data are loaders; DataError where classes are
    others, or a column of the samples is missing.
    """
    if "train" not in data.splits:
        raise RecipeError("inputs.train: it needs a data set with named splits, not loaders; leave it out")
    made, before = load_data(artifact), data.splits["train"]
    split = made.splits["train"]
    if made.classes and data.classes and made.classes != data.classes:
        raise DataError(
            f"inputs.train: {artifact.folder} has the classes {', '.join(made.classes)}, and the data "
            f"{', '.join(data.classes)}; they must be the same, in one order"
        )
    missing = sorted(set(before.columns) - set(split.columns) - set(TARGETS))
    if missing:
        raise DataError(
            f"inputs.train: {artifact.folder} has no column {missing[0]!r}; it has {', '.join(split.columns)}"
        )
    for name in set(TARGETS) & set(before.columns) - set(split.columns):
        like = np.asarray(before.columns[name])
        none = np.zeros((len(split), *like.shape[1:]), like.dtype)
        split = replace(split, columns={**split.columns, name: none}, labelled=np.zeros(len(split), bool))
    fingerprint = hashlib.sha256(f"{data.fingerprint} train {made.fingerprint}".encode()).hexdigest()
    return replace(data, splits={**data.splits, "train": split}, fingerprint=fingerprint)


def _write(draft: Draft, name: str, column: Any) -> str:
    if not name.isidentifier():
        raise DataError(f"column {name!r}: its name must be that of a file; use letters, digits and _")
    if isinstance(column, LazyColumn):
        column = np.asarray(column)
    if isinstance(column, np.ndarray) and column.dtype != object:
        np.save(draft.folder / f"{name}.npy", column, allow_pickle=False)
        return "array"
    if all(isinstance(each, str) for each in column):
        lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in column)
        (draft.folder / f"{name}.jsonl").write_bytes(lines.encode("utf-8", "surrogatepass"))
        return "texts"
    kinds = {(each.dtype, each.ndim) if isinstance(each, np.ndarray) else type(each).__name__ for each in column}
    if len(kinds) > 1 or not all(isinstance(each, np.ndarray) for each in column):
        raise DataError(
            f"column {name!r} holds {', '.join(map(str, kinds))}; allowed: an array, texts, arrays of one type"
        )
    np.save(draft.folder / f"{name}.npy", np.concatenate([each.reshape(-1) for each in column]), allow_pickle=False)
    np.save(draft.folder / f"{name}.shapes.npy", np.array([each.shape for each in column]), allow_pickle=False)
    return "arrays"


def _read(artifact: Artifact, name: str, form: str) -> Any:
    if form == "array":
        return _array(artifact, f"{name}.npy")
    if form == "texts":
        text = artifact.file(f"{name}.jsonl").read_bytes().decode("utf-8", "surrogatepass")
        return [json.loads(line) for line in text.split("\n")[:-1]]  # halves of characters are let be
    whole, shapes = _array(artifact, f"{name}.npy"), _array(artifact, f"{name}.shapes.npy")
    ends = np.cumsum(shapes.prod(1))
    return [part.reshape(shape) for part, shape in zip(np.split(whole, ends[:-1]), shapes)]


def _array(artifact: Artifact, name: str) -> np.ndarray:
    found: np.ndarray = np.load(artifact.file(name), allow_pickle=False)
    return found
