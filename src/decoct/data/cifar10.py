"""CIFAR-10: 32x32 colour photographs."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from decoct.data.base import Data, Dataset, Split
from decoct.data.files import folder_of, from_hub
from decoct.data.hashing import image_keys
from decoct.data.images import Pictures, stack
from decoct.data.parquet import checked_labels, read_columns
from decoct.data.splits import assemble
from decoct.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
REPOSITORY = "uoft-cs/cifar10"
WANTED = "DIR, the folder of train*.parquet and test*.parquet (columns img, label)"


class CIFAR10(Data):
    """CIFAR-10: 32x32 colour photographs in 10 classes, 50,000 and 10,000, from Parquet files with PNG bytes.

    `path`: the folder of `train*.parquet` and `test*.parquet` with the columns `img` and `label`; without it the files
    of uoft-cs/cifar10 are downloaded. The Python batches (`data_batch_1`) are pickles, which run code when they are
    read, and are refused. Krizhevsky 2009.
    """

    use: ClassVar[str] = "cifar10"

    def open(self, *, offline: bool = False) -> Dataset:
        if self.path is not None:
            files = {name: _files(folder_of(self.path), name) for name in ("train", "test")}
        else:
            names = {name: f"plain_text/{name}-00000-of-00001.parquet" for name in ("train", "test")}
            found = from_hub(self.use, REPOSITORY, names, WANTED, offline=offline)
            files = {name: [path] for name, path in found.items()}
        return assemble(self, {name: _read(paths) for name, paths in files.items()}, classes=CLASSES)


def _files(path: Path, split: str) -> list[Path]:
    for folder in (path, path / "plain_text"):
        found = sorted(folder.glob(f"{split}*.parquet"))
        if found:
            return found
    for folder in (path, path / "cifar-10-batches-py"):
        if (folder / "data_batch_1").exists():
            raise DataError(
                f"data.path={path}: data_batch_1 is a pickle, and reading a pickle can run any code in it, so it is "
                f"refused; get the Parquet files of https://huggingface.co/datasets/{REPOSITORY} and give "
                f"data.path={WANTED}"
            )
    raise DataError(f"data.path={path}: no {split}*.parquet there; give data.path={WANTED}")


def _read(paths: list[Path]) -> Split:
    cells, labels = read_columns(paths, ["img", "label"])
    places = [f"{paths[0]}, row {row}" for row in range(len(cells))]
    images, pictures = [], Pictures(count=len(cells))
    for cell, place in zip(cells, places):
        content = cell.get("bytes") if isinstance(cell, dict) else None
        if not isinstance(content, bytes):
            raise DataError(f"{place}: column img holds no image bytes; expected {{bytes, path}}")
        images.append(pictures.read(content, place))
    pictures.say(paths[0])
    if not images:
        raise DataError(f"{paths[0]}: holds no rows")
    stacked = stack(images, places, "CIFAR-10 images have one size")
    return Split({"image": stacked, "label": checked_labels(paths, labels, len(CLASSES))}, image_keys(stacked))
