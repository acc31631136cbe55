"""What every data set does with its samples: hold out, keep some labels, limit, check, fingerprint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from decoct.data.base import Data, Dataset, Split
from decoct.data.files import walked_names
from decoct.data.hashing import fingerprint, keyed, uniform
from decoct.data.mapped import room, spans
from decoct.errors import DataError, RecipeError

NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""What people call the files and folders of each split, the first name first."""


def split_named(file: str) -> str | None:
    """The split that a word of a file's name says.

    >>> split_named("adult-test.csv.gz"), split_named("wine.csv")
    ('test', None)
    """
    words = set(re.split(r"[^a-z]+", file.lower()))
    return next((split for split, names in NAMES.items() if words & set(names)), None)


def split_files(path: Path, endings: Sequence[str]) -> dict[str, list[Path]]:
    """The files of each split below a folder, sorted by path: each may have several; one file is for training.

    The split is the one that the folder below `path`, or else a word of the name, says. Where none says any, all are
    for training. DataError where some do and others do not, or none is for training.
    """
    if not path.is_dir():
        return {"train": [path]}
    every = [Path(each) for each in walked_names(path) if each.lower().endswith(tuple(endings))]
    return files_by_split(path, sorted(every))


def files_by_split(path: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """The same of files that were found below `path`."""
    if not files:
        raise DataError(f"data.path={path}: no such files there; give the file, or the folder that holds them")
    found: dict[str, list[Path]] = {}
    for file in files:
        words = [*file.relative_to(path).parts[:-1], file.name] if file.is_relative_to(path) else [file.name]
        found.setdefault(next((name for each in words if (name := split_named(each))), ""), []).append(file)
    if set(found) == {""}:
        return {"train": found[""]}
    if "" in found:
        raise DataError(
            f"data.path={path}: some files name a split and {found[''][0]} does not; put train, validation or test "
            "into the name of each, or of its folder"
        )
    if "train" not in found:
        raise DataError(f"data.path={path}: no file for training (train in its name, or in that of its folder)")
    return {name: found[name] for name in NAMES if name in found}


def assemble(
    data: Data,
    splits: Mapping[str, Split],
    *,
    classes: tuple[str, ...] = (),
    features: tuple[str, ...] = (),
    info: Mapping[str, Any] | None = None,
) -> Dataset:
    """The data set of `splits`, with the settings that all Data share applied: validation, limit, labels."""
    splits = dict(splits)
    for name, split in splits.items():
        if len(split) == 0:
            raise DataError(f"{data.use}: the {name} split is empty")
    if "validation" not in splits and data.validation > 0:
        splits["train"], splits["validation"] = hold_out(splits["train"], data.validation, "validation")
        if len(splits["train"]) == 0:
            raise DataError(f"{data.use}: nothing is left to train on after validation={data.validation}; lower it")
    if data.limit is not None:
        splits = {name: first(split, data.limit) for name, split in splits.items()}
    if data.labels is not None:
        splits["train"] = keep_labels(splits["train"], data.labels)
    return Dataset(splits, fingerprint(splits, classes, features), classes, features, dict(info or {}))


def hold_out(split: Split, fraction: float, salt: str) -> tuple[Split, Split]:
    """`(rest, held)`: a sample is held out when the hash of its key is below `fraction`.

    A sample's side depends on its own content alone, so equal samples stay together and added ones move no other.
    At least one sample is held out.
    """
    held, rest = room(len(split), bool), room(len(split), bool)
    for part in spans(len(split)):
        held[part] = uniform(keyed(salt, split.keys[part])) < fraction
    if not held.any():
        hashes = keyed(salt, split.keys)
        held = hashes == hashes.min()
    return split.where(np.logical_not(held, out=rest)), split.where(held)


def first(split: Split, count: int) -> Split:
    """The `count` samples that come first by the hash of their key, in the order they had."""
    if len(split) <= count:
        return split
    order = np.argsort(keyed("limit", split.keys), kind="stable")
    return split.take(np.sort(order[:count]))


def keep_labels(split: Split, count: int) -> Split:
    """The same samples, of which `count` stay labelled, drawn evenly over the classes by the hash of their key.

    RecipeError where fewer samples are labelled, or where `count` is smaller than the number of classes.
    """
    available = np.ones(len(split), bool) if split.labelled is None else split.labelled
    if count > available.sum():
        raise RecipeError(
            f"labels: {count} asked for, {available.sum()} training samples are labelled; give at most that"
        )
    groups = np.asarray(split.columns["label"]) if "label" in split.columns else np.zeros(len(split), np.int64)
    sizes = np.bincount(groups[available])
    if count < (sizes > 0).sum():
        raise RecipeError(f"labels: {count} is fewer than the {(sizes > 0).sum()} classes; give at least one for each")
    order = np.argsort(keyed("labels", split.keys), kind="stable")
    kept = np.zeros(len(split), bool)
    for group, share in enumerate(even_shares(sizes, count)):
        members = order[available[order] & (groups[order] == group)]
        kept[members[:share]] = True
    return replace(split, labelled=kept)


def even_shares(available: np.ndarray, count: int) -> np.ndarray:
    """`count` things over groups as evenly as the sizes of the groups allow.

    >>> even_shares(np.array([100, 2, 100]), 11)
    array([5, 2, 4])
    """
    shares = np.zeros(len(available), np.int64)
    while (left := count - shares.sum()) > 0:
        unfilled = np.flatnonzero(shares < available)
        if left < len(unfilled):
            shares[unfilled[:left]] += 1
        else:
            shares[unfilled] = np.minimum(shares[unfilled] + left // len(unfilled), available[unfilled])
    return shares
