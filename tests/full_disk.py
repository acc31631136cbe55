"""Runs a recipe on a small disk that is filled up when a step begins; prints one JSON object a case, `STEP:FREE`.

Started in a mount namespace of its own (`unshare -m`), it lays a tmpfs over the folder that it is given and leaves FREE
bytes when STEP begins. The run that a full disk ended is made again after the disk grew.
"""

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decoct.artifact import Artifact
from decoct.errors import DecoctError
from decoct.recipe.recipe import Recipe

LEARN = {"budget": {"steps": 4}, "batch_size": 16, "log_every": 1, "checkpoint_seconds": 0.001}
PLAIN = {
    "task": {"use": "image_classification"},
    "data": {"use": "digits", "limit": 40},
    "models": {"large": {"use": "mlp", "hidden": [300]}, "small": {"use": "mlp", "hidden": [64]}},
    "steps": [
        {"use": "train", "name": "teacher", "inputs": {"model": "large"}, **LEARN},
        {"use": "label", "name": "answers", "inputs": {"teacher": "teacher"}},
        {"use": "distill", "name": "student", "inputs": {"model": "small", "teacher": "answers"}, **LEARN},
        {"use": "export", "name": "onnx", "inputs": {"model": "student"}},
        {"use": "export", "name": "pt2", "inputs": {"model": "teacher"}, "target": {"use": "torch_export"}},
        {"use": "quantize", "name": "int8", "inputs": {"model": "onnx"}},
    ],
}


def once(folder: Path, step: str = "", free: int = 0) -> str:
    """How a run ended; when `step` begins, all but `free` bytes of the disk are taken."""

    def watch(event: Mapping[str, Any]) -> None:
        if event["event"] == "started" and event["step"] == step:
            taken = shutil.disk_usage(folder).free - free
            (folder.parent / "ballast").write_bytes(bytes(max(0, taken)))

    try:
        Recipe.parse(PLAIN).run(folder, watch=watch)
    except DecoctError as error:
        return f"{error.exit_code}: {error}"
    except BaseException as error:
        return f"traceback {type(error).__name__}: {error}"
    return "done"


def whole(folder: Path) -> list[str]:
    """The hashes of the models that training made; every artifact must be whole."""
    found = {path.parent.name: Artifact.load(path.parent) for path in folder.glob("*/manifest.json")}
    return [found[name].hash for name in sorted(found) if found[name].kind == "model"]


def on_disk(place: Path, step: str, free: int) -> dict[str, object]:
    """A run on a disk that `step` finds all but full, and once more after it grew."""
    run = place / "run"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(place)], check=True)
    try:
        ended = once(run, step, free)
        whole(run)
        left = [str(each.relative_to(place)) for each in place.rglob("*.writing")]
        subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
        return {"step": step, "free": free, "ended": ended, "left": left, "again": once(run), "hashes": whole(run)}
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for each in sys.argv[2:]:
        name, _, number = each.partition(":")
        print(json.dumps(on_disk(Path(sys.argv[1]), name, int(number))), flush=True)
