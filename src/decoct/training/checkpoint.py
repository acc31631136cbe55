"""Checkpoints: folders written whole or not at all, found again after any kill."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from decoct.artifact import damaged, read_json, understood, write_tensors, writing
from decoct.errors import IntegrityError
from decoct.training.packing import pack, unpack

KEEP = 2
_NAME = re.compile(r"^checkpoint-(\d+)$")


class Checkpoints:
    """The folders `checkpoint-STEP` below `work`; the last two are kept.

    Each is written to a temporary neighbour, synced, listed with SHA-256 and renamed to its place.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        work.mkdir(parents=True, exist_ok=True)

    def save(self, step: int, state: Any) -> Path:
        """Writes a nested state as the checkpoint of `step` and removes all but the last two."""
        data, tensors = pack(state)
        folder = self.work / f"checkpoint-{step}"
        with writing(folder, kind="records", name=folder.name) as draft:
            write_tensors(draft.folder / "state.safetensors", {name: _on_cpu(each) for name, each in tensors.items()})
            text = json.dumps(data, allow_nan=False, separators=(",", ":"))
            (draft.folder / "state.json").write_text(text, encoding="utf-8")
        for _, old in self.list()[KEEP:]:
            shutil.rmtree(old)
        return folder

    def load(self) -> tuple[int, Any] | None:
        """Step and state of the newest whole checkpoint; damaged ones are removed with a warning."""
        for step, folder in self.list():
            try:
                wrong = damaged(folder)
            except IntegrityError as error:
                wrong = [str(error)]
            try:
                if not wrong:
                    return step, self.read(step)
            except IntegrityError as error:
                wrong = [str(error)]
            self.drop(folder, "; ".join(wrong))
        return None

    def read(self, step: int) -> Any:
        """The state of a checkpoint that is known to be whole."""
        folder = self.work / f"checkpoint-{step}"
        data = read_json(folder / "state.json")
        with understood(folder / "state.json"):
            return unpack(data, load_file(folder / "state.safetensors"))

    def drop(self, folder: Path, reason: str) -> None:
        """Removes a checkpoint that cannot be used, and says so."""
        warnings.warn(f"{folder} is left out: {reason}", stacklevel=3)
        shutil.rmtree(folder)

    def list(self) -> list[tuple[int, Path]]:
        """Steps and folders, newest first."""
        found = [(int(match[1]), path) for path in self.work.iterdir() if (match := _NAME.match(path.name))]
        return sorted(found, reverse=True)

    def tidy(self) -> None:
        """Removes what a killed process left half written."""
        for path in self.work.glob(".checkpoint-*"):
            shutil.rmtree(path)


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor if tensor.device.type == "cpu" else tensor.cpu()
