"""Recipes that ship with decoct, and a commented first recipe for one's own data."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import decoct
from decoct.errors import DataError, RecipeError, did_you_mean
from decoct.recipe.file import dump

if TYPE_CHECKING:
    from decoct.data.tables import Table


def shipped() -> dict[str, Path]:
    """The recipes that come with decoct, by name."""
    package = Path(decoct.__file__).parent
    folders = [package / "_recipes", package.parents[1] / "recipes"]
    folder = next((each for each in folders if each.is_dir()), None)
    return {path.stem: path for path in sorted(folder.rglob("*.yaml"))} if folder else {}


def find(name: str) -> Path:
    """The recipe file that `name` means: a path, or the name of a shipped recipe."""
    path = Path(name)
    if path.is_file() or path.suffix in (".yaml", ".yml") or path.name != name:
        return path
    known = shipped()
    if name in known:
        return known[name]
    raise RecipeError(f"{name!r} is no file and no shipped recipe; {did_you_mean(name, known)}")


def about(path: Path) -> str:
    """The first sentence of a recipe's opening comment."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines).partition(". ")[0].rstrip(".") + "."


@dataclass(frozen=True)
class Start:
    """What a first recipe for a task holds: data, models, how the teacher is made, the student's objective."""

    data: Mapping[str, Any]
    models: Mapping[str, Mapping[str, Any]]
    teacher: Mapping[str, Any]
    objective: tuple[Mapping[str, Any], ...]
    epochs: int
    task: Mapping[str, Any] = field(default_factory=dict)
    batch: Mapping[str, int] = field(default_factory=dict)


_KD = ({"use": "kd", "weight": 0.9, "temperature": 4.0}, {"use": "cross_entropy", "weight": 0.1})
_NETWORK = {"use": "train", "name": "teacher", "inputs": {"model": "large"}, "budget": {"epochs": 20}}
_BOOSTING = {"use": "train_estimator", "name": "teacher", "estimator": {"use": "gradient_boosting"}}
_MLP = {"small": {"use": "mlp", "hidden": [32, 32]}}

STARTS = {
    "image_classification": Start(
        data={"use": "digits"},
        models={"large": {"use": "small_resnet", "width": 32}, "small": {"use": "small_resnet", "width": 8}},
        teacher=_NETWORK,
        objective=_KD,
        epochs=20,
    ),
    "text_classification": Start(
        data={"use": "sst2"},
        models={
            "large": {
                "use": "transformers",
                "config": {"model_type": "bert", "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4},
            },
            "small": {"use": "bilstm"},
        },
        teacher={**_NETWORK, "budget": {"epochs": 5}},
        objective=_KD,
        epochs=5,
    ),
    "token_classification": Start(
        data={"use": "conll", "path": "DIR"},
        models={"large": {"use": "bilstm", "hidden": 256}, "small": {"use": "bilstm", "embedding": 64, "hidden": 64}},
        teacher={**_NETWORK, "budget": {"epochs": 10}},
        objective=({"use": "kd", "weight": 0.7, "temperature": 2.0}, {"use": "task_loss", "weight": 0.3}),
        epochs=10,
    ),
    "detection": Start(
        task={"augment": {"flip": True}},
        data={"use": "voc", "path": "DIR", "size": [192, 256]},
        models={"large": {"use": "small_detector", "widths": [32, 64, 96, 128]}, "small": {"use": "small_detector"}},
        teacher=_NETWORK,
        objective=({"use": "box_targets", "weight": 0.5}, {"use": "task_loss", "weight": 0.5}),
        epochs=20,
    ),
    "language_model": Start(
        data={"use": "text", "path": "FILE"},
        models={
            "large": {"use": "small_gpt", "width": 128, "depth": 4},
            "small": {"use": "small_gpt", "width": 64, "depth": 1, "heads": 2},
        },
        teacher={**_NETWORK, "budget": {"epochs": 6}},
        objective=({"use": "forward_kl", "weight": 0.9}, {"use": "task_loss", "weight": 0.1}),
        epochs=4,
    ),
    "segmentation": Start(
        data={"use": "image_masks", "path": "DIR", "size": [96, 128]},
        models={
            "large": {"use": "small_unet", "widths": [16, 32, 64]},
            "small": {"use": "small_unet", "widths": [8, 16]},
        },
        teacher=_NETWORK,
        objective=({"use": "kd", "weight": 0.9, "temperature": 1.0}, {"use": "task_loss", "weight": 0.1}),
        epochs=20,
    ),
    "multi_task": Start(
        task={"reads": {"use": "images"}, "heads": {"digit": {"use": "classes"}, "garment": {"use": "classes"}}},
        data={"use": "several", "sets": {"digit": {"use": "mnist"}, "garment": {"use": "fashion_mnist"}}},
        models={"large": {"use": "small_resnet", "width": 16}, "small": {"use": "small_mobilenet", "width": 8}},
        teacher={**_NETWORK, "budget": {"epochs": 6}},
        objective=(
            {"use": "kd", "name": "kd_digit", "head": "digit", "weight": 0.4},
            {"use": "kd", "name": "kd_garment", "head": "garment", "weight": 0.4},
            {"use": "task_loss", "weight": 0.2},
        ),
        epochs=4,
    ),
    "tabular_classification": Start(
        data={"use": "credit_default"},
        models=_MLP,
        teacher=_BOOSTING,
        objective=({"use": "kd", "weight": 0.9, "temperature": 1.0}, {"use": "cross_entropy", "weight": 0.1}),
        epochs=15,
    ),
    "regression": Start(
        data={"use": "california_housing"},
        models=_MLP,
        teacher=_BOOSTING,
        objective=({"use": "regression_kd", "weight": 0.7}, {"use": "task_loss", "weight": 0.3}),
        epochs=30,
    ),
}


PRESETS = {"fast": 0.25, "balanced": 1.0, "best": 2.0}
"""By how much each preset lengthens training; balanced and best write an int8 file of the student too."""
STEPS, BATCH, FEW = 600, 32, 5000
"""Training takes at least so many steps, by the preset's share; where samples are FEW, of BATCH of them."""
LARGE_ENOUGH = 64
_STATIC, _DYNAMIC = {"use": "static"}, {"use": "dynamic"}
INTEGERS = {
    "image_classification": _STATIC,
    "segmentation": _STATIC,
    "text_classification": _DYNAMIC,
    "token_classification": _DYNAMIC,
}
"""How a student is written in int8, for the tasks where that makes a smaller file."""


@dataclass(frozen=True)
class Wishes:
    """What a first recipe is asked for: a preset, the names of the teacher's and the student's network, the target."""

    preset: str | None = None
    teacher: str | None = None
    student: str | None = None
    target: str | None = None

    def of(self, start: Start, samples: int | None = None) -> Start:
        """The start with these wishes; few `samples` are seen more often, so that there are STEPS of them."""
        if self.preset not in (None, *PRESETS):
            raise RecipeError(f"--preset {self.preset}: {did_you_mean(str(self.preset), PRESETS)}")
        share = PRESETS[self.preset or "balanced"]
        least = 0 if self.preset is None or not samples else math.ceil(STEPS * share * BATCH / samples)
        models: dict[str, Any] = dict(start.models)
        models |= {name: given for name, given in (("large", self.teacher), ("small", self.student)) if given}
        teacher = dict(_NETWORK if self.teacher and "budget" not in start.teacher else start.teacher)
        batch = {"batch_size": BATCH} if least and samples and samples < FEW else {}
        if "budget" in teacher:
            teacher |= batch
            teacher["budget"] = {"epochs": max(least, _scaled(teacher["budget"]["epochs"], share))}
        return replace(
            start, models=models, teacher=teacher, batch=batch, epochs=max(least, _scaled(start.epochs, share))
        )


def _samples(data: Mapping[str, Any]) -> int | None:
    """About how many samples there are to train on; None where counting would mean reading all."""
    if data.get("use") == "image_folder":
        from decoct.data.image_folder import class_folders

        place = Path(str(data["path"]))
        classes = class_folders(_training(place))
        return sum(map(len, classes.files.values()))
    if data.get("use") in ("csv", "tsv", "text_files"):
        from decoct.data.files import read_bytes
        from decoct.data.text_files import ending, split_files

        file = split_files(Path(str(data["path"])))["train"]
        return None if ending(file) == ".parquet" else read_bytes(file).count(b"\n")
    return None


def _side(folder: Path) -> int:
    """To which size pictures are brought: the shortest side of some of them, at most LARGE_ENOUGH."""
    from PIL import Image

    from decoct.data.image_folder import class_folders
    from decoct.data.images import FORMATS

    sides = [LARGE_ENOUGH]
    for files in class_folders(_training(folder)).files.values():
        for file in files[:3]:
            try:
                with Image.open(file, formats=FORMATS) as picture:
                    sides.append(max(8, min(picture.size)))
            except (OSError, ValueError, SyntaxError):
                continue  # check names it
    return min(sides)


def _scaled(epochs: int, share: float) -> int:
    return max(1, round(epochs * share))


def write(task: str | None = None, folder: Path | None = None, wishes: Wishes | None = None) -> str:
    """The text of a commented recipe that passes `check`, for a task, for the data in `folder`, or for both."""
    wishes = wishes or Wishes()
    data: dict[str, Any] = {}
    if folder is not None:
        guessed, data = look_at(folder, task, wishes.target)
        task = task or guessed
    task = task or "image_classification"
    if task not in STARTS:
        raise RecipeError(f"--task {task}: there is no first recipe for it; {did_you_mean(task, STARTS)}")
    start = wishes.of(STARTS[task], None if wishes.preset is None else _samples(data))
    scheme = INTEGERS.get(task) if wishes.preset in ("balanced", "best") else None
    return _HEAD + "".join(
        [
            "version: 1\n",
            "seed: 0                       # decides every random number of the run\n",
            f"\n# What is learnt: decoct list tasks, decoct explain {task}\n",
            dump({"task": {"use": task, **start.task}}),
            "\n# What it is learnt from: decoct list data; another place: decoct run ... data.path=PLACE\n",
            dump({"data": data or start.data}),
            "\n# Networks by name: decoct list models; any torchvision or timm name too, as timm/resnet18\n",
            dump({"models": start.models}),
            _steps(start, scheme),
        ]
    )


_HEAD = """\
# A decoct recipe: steps over artifacts, in order. A step takes the step before it where an input is left out.
#   decoct check FILE               tests it without training
#   decoct run FILE --out runs/a    does it; the same command continues it and redoes only what changed
#   decoct explain KEY              tells what any of these words means, its default and its range
"""


def _steps(start: Start, scheme: Mapping[str, Any] | None = None) -> str:
    budget = {"epochs": start.epochs}
    alone = {"use": "train", "name": "student_alone", "inputs": {"model": "small"}, "budget": budget, **start.batch}
    inputs = {"model": "small", "teacher": "teacher"}
    student = {
        "use": "distill",
        "name": "student",
        "inputs": inputs,
        "objective": list(start.objective),
        "budget": budget,
        **start.batch,
    }
    names = ("teacher", "student_alone", "student")
    exports = [{"use": "export", "name": f"{name}_onnx", "inputs": {"model": name}} for name in names]
    files = {name: f"{name}_onnx" for name in names}
    smaller: list[dict[str, Any]] = []
    if scheme is not None:
        smaller = [{"use": "quantize", "name": "student_int8", "inputs": {"model": "student"}, "scheme": scheme}]
        files["student_int8"] = "student_int8"
    benchmark = {"use": "benchmark", "name": "benchmark", "inputs": files}
    parts = [
        ("The large model, which is then frozen and teaches.", [start.teacher]),
        ("The small model without a teacher, on the same budget: what distilling is compared with.", [alone]),
        ("The small model on what the teacher says and on the labels; the weights of the terms are yours.", [student]),
        ("Each as an ONNX file, compared with its model on real samples.", exports),
        *([("The student in 8-bit integers.", smaller)] if smaller else []),
        ("Quality, size and speed of those files, on the test split.", [benchmark]),
    ]
    text = "\nsteps:\n"
    for comment, steps in parts:
        body = dump({"steps": steps}).partition("\n")[2]
        text += f"  # {comment}\n{body}"
    return text


def look_at(folder: Path, task: str | None = None, target: str | None = None) -> tuple[str, dict[str, Any]]:
    """The task and the data that a folder (or one file) suggests; DataError says what would be understood."""
    folder = folder.expanduser()
    if not folder.is_dir() and not folder.is_file():
        wrong = "neither a folder nor a file" if folder.exists() else "nothing"
        raise DataError(f"{folder}: {wrong} is there; give a folder of data, or one file")
    place = str(folder.resolve())
    if folder.is_dir() and any(folder.rglob("*-images-idx3-ubyte*")):
        return "image_classification", {"use": "fashion_mnist", "path": place}
    if folder.is_dir() and task in (None, "image_classification") and _has_class_folders(folder):
        return "image_classification", {"use": "image_folder", "path": place, "size": _side(folder)}
    if any(each.suffix == ".conll" for each in ([folder] if folder.is_file() else folder.iterdir())):
        return "token_classification", {"use": "conll", "path": place}
    if task in (None, "text_classification") and (texts := _texts(folder, target, asked=task is not None)) is not None:
        return "text_classification", texts
    if (found := _tables(folder, ".tsv")) is not None:
        return "text_classification", {"use": "tsv", "path": str(found.resolve() if folder.is_file() else place)}
    if (files := _csv_files(folder)) is not None:
        return _csv(files, task, target)
    raise DataError(
        f"{folder}: holds no data that is understood; give a folder of images with one folder a class, "
        "IDX files, texts with a label in CSV, TSV, JSON lines or Parquet (train and test files by name), a folder of "
        ".conll files (word, tab, tag), or one CSV file whose last column is the target"
    )


PARTS = frozenset(
    ("images", "masks", "labels", "annotations", "train", "training", "test", "testing", "validation", "val")
)
"""Names of folders that are parts of a data set."""


def _training(folder: Path) -> Path:
    """The folder of training pictures: of that name, in any case, where there is one."""
    names = ("train", "training")
    return next((each for each in sorted(folder.iterdir()) if each.is_dir() and each.name.lower() in names), folder)


def _has_class_folders(folder: Path) -> bool:
    from decoct.data.image_folder import class_folders

    found = class_folders(_training(folder)).files
    if not PARTS.isdisjoint(each.lower() for each in found):
        raise DataError(
            f"{folder}: its folders are called {', '.join(list(found)[:5])}, which are parts of a data set and no "
            "classes; say which task (--task segmentation, detection), or give the folder that holds one folder a class"
        )
    return len(found) > 1


def _tables(folder: Path, suffix: str) -> Path | None:
    """The one table of that kind, `train` first, compressed or not."""
    files = [folder] if folder.is_file() else sorted(folder.iterdir())
    found = [each for each in files if each.name.removesuffix(".gz").endswith(suffix)]
    if suffix == ".tsv" and folder.is_dir():
        found = [each for each in found if each.name.removesuffix(".gz") == "train.tsv"]
    return next((each for each in found if each.stem.startswith("train")), found[0] if found else None)


TARGETS = ("label", "target", "class", "category", "intent", "sentiment", "y")
"""Names of columns that are taken for the target, the first first; else the last column."""
MANY = 20
"""A target with more unlike numbers than this is a number to predict."""
PREVIEW = 2000
"""Rows that are looked at."""
SENTENCE = 2.5
"""Words that a cell of a column of texts has on average, at least."""


def _texts(folder: Path, wanted: str | None = None, *, asked: bool = False) -> dict[str, Any] | None:
    """Text files where one column holds sentences and another one classes; None where it is no such data.

    Unless texts are `asked` for, further columns may only number the rows.
    """
    from decoct.data.text_files import ENDINGS, delimiter_of, ending, split_files

    try:
        files = split_files(folder)
    except DataError:
        return None
    train = files["train"]
    if ending(train) not in ENDINGS:
        return None
    columns = _preview(train)
    if len(columns) < 2 or any(_is_number(name) or len(name.split()) > 3 for name in columns):  # no header
        return None
    if wanted is not None and wanted not in columns:
        return None
    target = wanted or next((name for each in TARGETS for name in columns if name.lower() == each), list(columns)[-1])
    sentences = [name for name, cells in columns.items() if name != target and _is_prose(cells)]
    others = [name for name, cells in columns.items() if name not in (target, *sentences) and not _is_key(name, cells)]
    classes = set(columns[target])
    if len(sentences) != 1 or len(classes) > max(2, len(columns[target]) / 2):
        return None
    if not asked and (others or (len(classes) > MANY and all(map(_is_number, classes)))):  # a table with a name in it
        return None
    found: dict[str, Any] = {"use": "text_files", "path": str(folder.resolve()), "text": sentences[0], "target": target}
    delimited = ending(train) in (".csv", ".tsv")
    return found | ({"delimiter": delimiter} if delimited and (delimiter := delimiter_of(train)) != "," else {})


def _preview(path: Path) -> dict[str, list[str]]:
    """The columns of a table of any kind as text; none where it has no header, or is damaged."""
    import json

    from decoct.data.files import read_text
    from decoct.data.tables import read_table
    from decoct.data.text_files import delimiter_of, ending

    try:
        if ending(path) == ".parquet":
            import pyarrow.parquet

            batches = pyarrow.parquet.ParquetFile(path).iter_batches(PREVIEW)
            table = pyarrow.Table.from_batches([next(batches)])
            return {name: [str(each) for each in table.column(name).to_pylist()] for name in table.column_names}
        if ending(path) in (".jsonl", ".ndjson"):
            lines = (line for line in read_text(path).splitlines() if line.strip())
            rows = [json.loads(line) for line in itertools.islice(lines, PREVIEW)]
            return {name: [str(row.get(name)) for row in rows] for name in rows[0]}
        found = read_table(path, delimiter=delimiter_of(path))
        return {name: found.cells(name, "data")[:PREVIEW].to_pylist() for name in found.names}
    except (DataError, OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError, StopIteration):
        return {}


def _is_key(name: str, cells: list[str]) -> bool:
    """Whether a column numbers rows: it has no name, or one of a key, and no cell twice."""
    return name.lower() in ("", "id", "index", "key", "unnamed: 0") and len(set(cells)) == len(cells)


def _is_prose(cells: list[str]) -> bool:
    return sum(len(each.split()) for each in cells) >= SENTENCE * len(cells) and not any(map(_is_number, cells[:5]))


def _csv_files(folder: Path) -> dict[str, Path] | None:
    """The CSV file of each split; None where there is none, DataError where nobody knows which is which."""
    from decoct.data.text_files import ending, named_splits

    files = [folder] if folder.is_file() else sorted(folder.iterdir())
    found = [each for each in files if each.is_file() and ending(each) == ".csv"]
    if not found:
        return None
    return named_splits(folder, found)


def _csv(files: Mapping[str, Path], task: str | None, wanted: str | None = None) -> tuple[str, dict[str, Any]]:
    """The last column is the target unless one is `wanted`; a number to predict where it holds many unlike numbers.

    Columns of text of which most cells are unlike any other (names, ids) are left out.
    """
    from decoct.data.tables import MISSING, read_table
    from decoct.data.text_files import delimiter_of

    path = files["train"]
    delimiter = delimiter_of(path)
    header = not _are_values(read_table(path, delimiter=delimiter, header=False))
    table = read_table(path, delimiter=delimiter, header=header)
    target = table.names[-1] if wanted is None else wanted
    cells = [cell for cell in table.column(target, "target") if cell not in MISSING]
    numeric = all(map(_is_number, cells))
    if task is None:
        task = "regression" if numeric and len(set(cells)) > MANY else "tabular_classification"
    names = [
        name
        for name in table.names
        if name != target and not all(_is_number(c) or c in MISSING for c in table.column(name, "data"))
    ]
    unlike = [name for name in names if len(set(table.column(name, "data"))) > max(20, len(cells) / 2)]
    names = [name for name in names if name not in unlike]
    data: dict[str, Any] = {"use": "csv", "path": str(path.resolve()), "target": target}
    if "validation" in files:
        told = f"{files['validation']}: a table has no validation file of its own; a part of {path.name} is held out"
        warnings.warn(told, stacklevel=2)
    data |= {"test_path": str(files["test"].resolve())} if "test" in files else {}
    data |= {"kind": "regression"} if task == "regression" else {}
    data |= {"categorical": names} if names else {}
    data |= {"drop": unlike} if unlike else {}
    data |= {"delimiter": delimiter} if delimiter != "," else {}
    data |= {} if header else {"header": False}
    return task, data


def _are_values(table: Table) -> bool:
    """Whether the first row of a table holds values as the others do, and no names of columns."""
    from decoct.data.tables import MISSING

    first = [column[0].as_py() for column in table.columns]
    if len(set(first)) < len(first) or any(each in MISSING for each in first):
        return True
    rest = [column[1:PREVIEW].to_pylist() for column in table.columns]
    numeric = [all(_is_number(each) for each in cells if each not in MISSING) for cells in rest]
    if not all(_is_number(cell) for cell, number in zip(first, numeric) if number):
        return False
    texts = [(cell, cells) for cell, number, cells in zip(first, numeric, rest) if not number]
    return any(cell in cells for cell, cells in texts) if texts else bool(numeric)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def found(recipe: Path) -> list[str]:
    """What a recipe is about, as it was understood, one line each: the data, the task, the networks."""
    from decoct.data.index import opened
    from decoct.recipe.recipe import Recipe
    from decoct.runner.describing import described

    loaded = Recipe.load(recipe)
    networks = ", ".join(f"{name} {each.use}" for name, each in loaded.models.items())
    return [
        f"{loaded.data.path}: {described(opened(loaded.data), loaded.task)}",
        f"Models: {networks}; {recipe} has it all",
    ]
