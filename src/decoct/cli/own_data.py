"""What a person's own folder or file holds, by looking at it: the task and the data that it suggests."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decoct.errors import DataError

if TYPE_CHECKING:
    from decoct.cli.teachers import Teacher
    from decoct.data.tables import Table

LARGE_ENOUGH = 64
"""Pictures are brought to so many pixels a side at most."""


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
    if task in (None, "image_classification") and (pictures := _picture_table(folder, target)) is not None:
        return "image_classification", pictures
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
        "a table of paths to images, IDX files, texts with a label in CSV, TSV, JSON lines or Parquet (train and test "
        "files by name), a folder of .conll files (word, tab, tag), or one CSV file whose last column is the target"
    )


PARTS = frozenset(
    ("images", "masks", "labels", "annotations", "train", "training", "test", "testing", "validation", "val")
)
"""Names of folders that are parts of a data set."""


def _training(folder: Path) -> Path:
    from decoct.data.image_folder import split_folders

    return split_folders(folder)["train"]


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


def _picture_table(folder: Path, wanted: str | None = None) -> dict[str, Any] | None:
    """A table with a column of paths to pictures that are there; None where it is no such table.

    The target is the column `wanted`, or called so, or the last one of the others; one of train, validation and test
    says the split.
    """
    from decoct.data.image_table import is_picture
    from decoct.data.splits import split_named
    from decoct.data.text_files import ENDINGS, ending, split_files

    try:
        train = split_files(folder)["train"]
    except DataError:
        return None
    columns = _preview(train) if ending(train) in ENDINGS else {}
    images = [name for name, cells in columns.items() if cells and all(map(is_picture, cells))]
    images = [name for name in images if (train.parent / columns[name][0]).is_file()]
    others = [name for name in columns if name not in images]
    if not images or not others:
        return None
    splits = [name for name in others if name != wanted and all(map(split_named, columns[name]))]
    others = [name for name in others if name not in splits] or others
    target = wanted or next((name for each in TARGETS for name in others if name.lower() == each), others[-1])
    found: dict[str, Any] = {"use": "image_table", "path": str(folder.resolve()), "image": images[0], "target": target}
    found |= {"split": splits[0]} if splits and splits[0] != target else {}
    files = [train.parent / each for each in columns[images[0]]]
    return found | {"size": _smallest(files[:: max(1, len(files) // 20)], LARGE_ENOUGH)}


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


def samples_of(data: Mapping[str, Any]) -> int | None:
    """About how many samples there are to train on; None where counting would mean reading all."""
    if data.get("use") == "image_folder":
        from decoct.data.image_folder import class_folders

        place = Path(str(data["path"]))
        classes = class_folders(_training(place))
        return sum(map(len, classes.files.values()))
    if data.get("use") in ("csv", "tsv", "text_files", "image_table"):
        from decoct.data.files import read_bytes
        from decoct.data.text_files import ending, split_files

        file = split_files(Path(str(data["path"])))["train"]
        return None if ending(file) == ".parquet" else read_bytes(file).count(b"\n")
    return None


def with_detail(data: dict[str, Any], given: Teacher) -> tuple[dict[str, Any], Teacher]:
    """Pictures in as many pixels as a pretrained teacher looks at, where they have them; the student sees them smaller,
    as it would alone."""
    if data.get("use") != "image_folder" or given.size is None or given.size <= data["size"]:
        return data, given
    side = _side(Path(str(data["path"])), given.size)
    if side <= data["size"]:
        return data, given
    return {**data, "size": side}, replace(given, task={**given.task, "size": data["size"]})


def _side(folder: Path, most: int = LARGE_ENOUGH) -> int:
    """To which size pictures are brought: the shortest side of some of them, at most `most`."""
    from decoct.data.image_folder import class_folders

    every = class_folders(_training(folder)).files.values()
    return _smallest([Path(file) for files in every for file in files[:3]], most)


def _smallest(files: Sequence[Path], most: int) -> int:
    from PIL import Image

    from decoct.data.images import FORMATS

    sides = [most]
    for file in files:
        try:
            with Image.open(file, formats=FORMATS) as picture:
                sides.append(max(8, min(picture.size)))
        except (OSError, ValueError, SyntaxError):
            continue  # check names it
    return min(sides)
