"""Relabelling: whether the store that stands in a folder is made from the same things as the one that is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decoct.artifact import Strict, read_json, read_manifest
from decoct.errors import IntegrityError, RecipeError
from decoct.store.finish import SHARDS, STORE


class _Table(Strict):
    meta: dict[str, Any]


def same_store(folder: Path, described: Mapping[str, Any]) -> bool:
    """Whether a folder holds a store, whole or damaged, that says to be made from what `described` says."""
    try:
        manifest = read_manifest(folder)
    except IntegrityError:
        return False
    return manifest["kind"] == "store" and not _differences(manifest["meta"], described)


def refuse_another(folder: Path, described: Mapping[str, Any]) -> None:
    """RecipeError where a folder holds anything but a store of the same teacher, data and settings.

    A store without a manifest that can be trusted is known by what its store.json says, where that can be read.
    """
    try:
        manifest = read_manifest(folder)
    except IntegrityError as error:
        if not (folder / STORE).is_file() and not (folder / SHARDS).is_dir():
            raise RecipeError(f"{folder} exists and holds no store ({error}); give another folder") from None
        before = _recorded(folder)
    else:
        if manifest["kind"] != "store":
            raise RecipeError(f"{folder} holds an artifact of kind {manifest['kind']}; give another folder")
        before = manifest["meta"]
    wrong = {} if before is None else _differences(before, described)
    if wrong:
        text = "; ".join(
            f"{name} ({_short(there)} there, {_short(here)} here)" for name, (there, here) in wrong.items()
        )
        raise RecipeError(f"{folder} holds a store of another {text}; give another folder, or remove it")


def _recorded(folder: Path) -> Mapping[str, Any] | None:
    """What a store's own table says that it was made from; None where it cannot be read."""
    try:
        found: dict[str, Any] = read_json(folder / STORE, _Table)["meta"]
    except (OSError, IntegrityError):
        return None
    return found


def _differences(before: Mapping[str, Any], described: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """By name what a store was made from and what it would be made from now; parts of `views` and `teacher` apart."""
    plain = json.loads(json.dumps(described))
    found: dict[str, tuple[Any, Any]] = {}
    for name in (*plain, *({"folds"} & before.keys() - plain.keys())):
        here, there = plain.get(name), before.get(name)
        if there == here:
            continue
        if isinstance(there, dict) and isinstance(here, dict) and there.keys() == here.keys() and name != "keep":
            found |= {f"{name}.{part}": (there[part], here[part]) for part in here if there[part] != here[part]}
        else:
            found[name] = (there, here)
    return found


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:16] + "..."
