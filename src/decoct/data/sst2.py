"""SST-2: sentiment of English film review sentences."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from decoct.data.base import Data, Dataset, Split
from decoct.data.files import from_hub, present
from decoct.data.hashing import text_keys
from decoct.data.labelled_texts import LabelledTexts
from decoct.data.parquet import checked_labels, read_columns
from decoct.data.splits import assemble
from decoct.data.tsv import find_files, read_rows, text_split
from decoct.errors import DataError

CLASSES = ("negative", "positive")
REPOSITORY = "stanfordnlp/sst2"
WANTED = "DIR, the folder of train.tsv, dev.tsv and test.tsv (sentence, tab, 0 or 1)"


class SST2(Data):
    """SST-2: sentences of film reviews, negative (0) or positive (1).

    `path`: the folder of train.tsv, dev.tsv and test.tsv, lines of sentence, tab, label, without header or quoting
    (6,920, 872 and 1,821 sentences). Without it stanfordnlp/sst2 is downloaded, as in GLUE: 67,349 phrases to train on;
    its test labels are not public, so its 872 development sentences are the test split. Socher et al. 2013.
    """

    use: ClassVar[str] = "sst2"

    def open(self, *, offline: bool = False) -> Dataset:
        splits = _local(present(self.path)) if self.path is not None else _hub(offline)
        return assemble(self, splits, classes=CLASSES)


def _local(path: Path) -> dict[str, Split]:
    files = find_files(path)
    absent = {"train", "validation", "test"} - set(files)
    if absent:
        raise DataError(f"data.path={path}: no file for {', '.join(sorted(absent))}; give data.path={WANTED}")
    return {name: text_split(file, LabelledTexts(read_rows(file, 0, 1)), ("0", "1")) for name, file in files.items()}


def _hub(offline: bool) -> dict[str, Split]:
    names = {name: f"data/{file}-00000-of-00001.parquet" for name, file in (("train", "train"), ("test", "validation"))}
    splits = {}
    for name, path in from_hub("sst2", REPOSITORY, names, WANTED, offline=offline).items():
        texts, labels = read_columns([path], ["sentence", "label"])
        splits[name] = Split({"text": texts, "label": checked_labels([path], labels, len(CLASSES))}, text_keys(texts))
    return splits
