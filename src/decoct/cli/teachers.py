"""The teacher that a person names: a folder, a file, a name on the hub, a run; and what a first recipe does with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decoct.errors import DataError, RecipeError

if TYPE_CHECKING:
    from decoct.models.brought import Brought

TEXTS = ("text_classification", "token_classification")
FINE_TUNING = {
    "optimizer": {"use": "adamw", "lr": {"use": "cosine", "start": 5.0e-5, "end": 0.0, "warmup": 0.1}},
    "max_grad_norm": 1.0,
    "side": "teacher",
}
"""How a pretrained network is trained on one's own data: gently."""
EPOCHS = 3
ANSWERING = ("artifact", "onnx", "stored", "http", "black_box", "estimator")
"""Models that answer as they are."""


@dataclass(frozen=True)
class Teacher:
    """A teacher as a first recipe has it.

    `model`: plain data; `ready`: it answers as it is and is not trained; `task`: settings of the task for its side;
    `training`: settings of the step that trains it; `size`: pixels a side that it looks at; `ships`: whether it can
    become a file that is measured beside the student's; `once`: it is so large that it is asked once.
    """

    model: Any
    ready: bool = False
    task: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    size: int | None = None
    ships: bool = True
    once: bool = False


def find(name: str, task: str, data: Mapping[str, Any]) -> Teacher:
    """The teacher that `name` means for a task on these data.

    A folder of transformers or timm, one that the hub has (written down with the commit it is at now), a run or
    artifact, a file that answers, or a name of the catalogue, which is trained from the start. DataError or
    RecipeError say what would be understood.
    """
    place = Path(name).expanduser()
    if place.exists():
        model = _of_place(place.resolve())
    elif name.startswith(("./", "../", "/", "~")):
        raise DataError(f"--teacher {name}: nothing is there; give a folder with the model, a file, or a run")
    else:
        model = _of_name(name)
    if not isinstance(model, dict):
        return Teacher(model)
    if model["use"] == "artifact":
        return Teacher(model, ready=True, ships=task not in TEXTS)
    if model["use"] in ANSWERING:
        return Teacher(model, ready=True, ships=False)
    return _pretrained(model, task, data)


def _of_place(place: Path) -> dict[str, Any]:
    """Plain data for what lies in a folder or file."""
    from decoct.models.base import of_path

    try:
        found: dict[str, Any] = of_path(place)
    except ValueError as error:
        raise DataError(f"--teacher {place}: {error}") from None
    return found


def _of_name(name: str) -> Any:
    """Plain data for a name of the catalogue or of the hub."""
    from decoct.models import CATALOGUE

    use, _, rest = name.partition("/")
    if use == "timm" and "." in rest:
        from decoct.models.hub import snapshot

        return {"use": "timm", "name": rest, "pretrained": True, "revision": snapshot(name, extra="vision")[1]}
    if use in CATALOGUE or ":" in use:
        return name
    from decoct.models.hub import NAME, snapshot

    if not NAME.fullmatch(name):
        raise RecipeError(f"--teacher {name}: neither a folder or file here nor a name; decoct list models has names")
    if "/" not in name and "-" not in name:
        from decoct.errors import did_you_mean

        raise RecipeError(
            f"--teacher {name}: is no folder or file here and no model of decoct; {did_you_mean(name, CATALOGUE)}; for "
            f"a network of torchvision or timm write torchvision/{name} or timm/{name}, for one on the hub OWNER/NAME"
        )
    folder, revision = snapshot(name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "architecture" in config and "pretrained_cfg" in config:
        return {"use": "timm", "name": name.removeprefix("timm/"), "pretrained": True, "revision": revision}
    return {"use": "transformers", "name": name, "revision": revision}


def _pretrained(model: dict[str, Any], task: str, data: Mapping[str, Any]) -> Teacher:
    """What its files ask for: its tokenizer or its pixels; whether its head knows the classes of the data."""
    from decoct.models import CATALOGUE

    spec = CATALOGUE.resolve(model["use"]).parse({name: each for name, each in model.items() if name != "use"})
    brought: Brought | None = spec.brings()  # type: ignore[attr-defined]
    if brought is None:
        return Teacher(model)
    wanted: dict[str, Any] = {}
    if task in TEXTS:
        origin = {name: model[name] for name in ("path", "name", "revision") if name in model}
        wanted["teacher_tokenizer"] = {"use": "pretrained", **origin}
        if brought.longest is not None and brought.longest < 128:
            wanted["teacher_max_length"] = brought.longest
    elif brought.mean is not None and brought.std is not None:
        count = 3 if len(brought.mean) == 1 else 1
        wanted |= {"teacher_mean": list(brought.mean) * count, "teacher_std": list(brought.std) * count}
        if brought.size is not None:
            wanted["teacher_size"] = brought.size
        if brought.resample == "bicubic":
            wanted["teacher_resample"] = "bicubic"
    names = _classes(data)
    if not brought.labels or _other_task(brought.labels, names):
        return Teacher(model, task=wanted, training=FINE_TUNING, size=brought.size, once=True)
    brought.refuse_untaught(names)
    return Teacher(model, ready=True, task=wanted, size=brought.size, once=True)


def _other_task(labels: Sequence[str], names: Sequence[str]) -> bool:
    """Whether a head was trained for something else: as many classes would be the same ones in other words."""
    from decoct.models.brought import plain_name

    return len(labels) != len(names) and not {*map(plain_name, labels)} & {*map(plain_name, names)}


def _classes(data: Mapping[str, Any]) -> tuple[str, ...]:
    from decoct.data import CATALOGUE
    from decoct.data.index import opened

    spec: Any = CATALOGUE.resolve(str(data["use"])).parse({name: each for name, each in data.items() if name != "use"})
    return tuple(opened(spec).classes)
