"""What ships beside a file so that it can be asked: how it is called, in it and beside it, and a program that does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decoct.artifact import write_whole
from decoct.errors import RecipeError
from decoct.serving import predict

if TYPE_CHECKING:
    import onnx

    from decoct.tasks.base import Reading

KEY, MANUAL, PROGRAM = "decoct", "manual.json", "predict.py"
"""The entry of an ONNX file's metadata, and the files beside it."""


def manual_of(reading: Reading, info: Mapping[str, Any]) -> dict[str, Any] | None:
    """How a file is asked about photos, texts or rows; None where that cannot be said."""
    try:
        return reading.manual(info)
    except RecipeError:
        return None


def with_manual(proto: onnx.ModelProto, manual: Mapping[str, Any] | None) -> onnx.ModelProto:
    """The graph with its manual in its metadata."""
    kept = [each for each in proto.metadata_props if each.key != KEY]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    if manual is not None:
        proto.metadata_props.add(key=KEY, value=json.dumps(manual, ensure_ascii=False, separators=(",", ":")))
    return proto


def put_into(path: Path, manual: Mapping[str, Any] | None) -> None:
    """Writes the manual into an ONNX file."""
    import onnx

    if manual is not None:
        write_whole(path, with_manual(onnx.load(str(path)), manual).SerializeToString(deterministic=True))


def beside(folder: Path, manual: Mapping[str, Any] | None) -> None:
    """Writes the manual and the program that asks by it into a folder."""
    if manual is not None:
        text = json.dumps(manual, ensure_ascii=False, indent=1) + "\n"
        (folder / MANUAL).write_text(text, encoding="utf-8")
        (folder / PROGRAM).write_text(Path(predict.__file__).read_text(encoding="utf-8"), encoding="utf-8")
