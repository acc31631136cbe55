"""JSON that was changed and sealed again: whoever reads it says so, with exit 6, and never with a traceback."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from decoct.artifact import MANIFEST, SEAL, Artifact, _seal, parse_json, read_manifest, sha256, writing
from decoct.errors import DecoctError, IntegrityError
from decoct.models.mlp import MLP
from decoct.models.saving import load_model, load_spec, save_model
from decoct.tasks.base import read_task
from decoct.tasks.tabular_classification import TabularClassification

TASK = TabularClassification(classes=("a", "b"), shape=(3,), raw=True)
NONSENSE: tuple[Any, ...] = (None, True, -1, 10**400, 0.5, "", "x", "__class__", [], {}, [[]], {"use": "x"}, {"use": 1})


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A model with changes of structure of most kinds, as a step leaves it."""
    spec, interface = MLP(hidden=(4,)), TASK.reading("teacher").interface
    torch.manual_seed(0)
    net = spec.build(interface)
    first = next(name for name, each in net.named_modules() if isinstance(each, nn.Linear))
    net.set_submodule(first, nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 4)))
    net.register_buffer("extra", torch.ones(2))
    folder = tmp_path / "a"
    with writing(folder, kind="model", name="a", meta={"side": "teacher"}) as draft:
        draft.write_json("task.json", TASK.plain())
        save_model(draft, net, spec, interface, side="teacher")
    return folder


def sealed(folder: Path, name: str, text: str) -> None:
    """Puts `text` in the place of a file, and seals the folder again as if decoct had written it."""
    manifest = read_manifest(folder)
    if name == MANIFEST:
        manifest = json.loads(text)
        sealing = {**manifest, SEAL: _seal(manifest)} if isinstance(manifest, dict) else manifest
    else:
        (folder / name).write_text(text)
        manifest["files"][name] = {"bytes": len(text.encode()), "sha256": sha256(folder / name)}
        sealing = {**manifest, SEAL: _seal(manifest)}
    (folder / MANIFEST).write_text(json.dumps(sealing))


def changes(value: Any) -> Iterator[Any]:
    """The same plain data with one part replaced by nonsense or taken out, each part in turn."""
    yield from NONSENSE
    if isinstance(value, dict):
        for key, each in value.items():
            yield {name: inner for name, inner in value.items() if name != key}
            yield from ({**value, key: other} for other in changes(each))
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield value[:place] + value[place + 1 :]
            yield from (value[:place] + [other] + value[place + 1 :] for other in changes(each))


def read(folder: Path) -> None:
    artifact = Artifact.load(folder)
    assert isinstance(artifact.hash, str)
    assert isinstance(artifact.meta["side"], str)
    load_spec(artifact)
    load_model(artifact)
    read_task(artifact)


@pytest.mark.parametrize("name", ["model.json", "task.json", MANIFEST])
def test_any_part_of_any_other_kind(made: Path, name: str) -> None:
    read(made)
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    plain = json.loads(before[name])
    plain.pop(SEAL, None)
    codes = set()
    refused = 0
    for changed in changes(plain):
        sealed(made, name, json.dumps(changed))
        try:
            read(made)
        except DecoctError as error:
            codes.add(error.exit_code)
            refused += 1
        for file, content in before.items():
            (made / file).write_bytes(content)
    assert refused > 100
    assert codes <= {2, 3, 6}  # 2: it is a task or a model, but this one takes no such network


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "[" * 100_000, '{"a":' * 300 + "1" + "}" * 300, '{"a": ' + "1" * 5000 + "}", '"\\ud800"']
    + ['{"base": "\\ud800"}', "\x00", "NaN"],
    ids=lambda text: repr(text[:12]),
)
@pytest.mark.parametrize("name", ["model.json", "task.json"])
def test_what_is_no_json(made: Path, name: str, text: str) -> None:
    sealed(made, name, text)
    with pytest.raises(IntegrityError, match=name):
        read(made)
    (made / MANIFEST).write_text(text)
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        Artifact.load(made)


@pytest.mark.parametrize("name", ["../b", "/etc/passwd", "a/../../b", "", "a\0b", "a" * 300])
def test_a_manifest_names_files_of_its_folder_alone(made: Path, name: str) -> None:
    manifest = copy.deepcopy(read_manifest(made))
    manifest["files"][name] = {"bytes": 1, "sha256": "0"}
    sealed(made, MANIFEST, json.dumps(manifest))
    with pytest.raises(IntegrityError, match="no file of this folder"):
        Artifact.load(made)


def test_what_lies_as_deep_as_is_read() -> None:
    assert parse_json("[" * 100 + "]" * 100, "a")
    with pytest.raises(IntegrityError, match="nested more than 100 deep"):
        parse_json("[" * 101 + "]" * 101, "a")
