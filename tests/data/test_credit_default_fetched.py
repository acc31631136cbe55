"""Credit default as OpenML gives it, from the files that scikit-learn keeps of it: plain and nominal columns alike."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from decoct.data.credit_default import CATEGORICAL, FEATURES, OPENML, TARGET, CreditDefault, _fetch

ROWS = 40


def table() -> dict[str, list[float]]:
    rng = np.random.default_rng(0)
    found = {name: rng.integers(-2, 9, ROWS).astype(float).tolist() for name in FEATURES}
    found |= {"SEX": rng.integers(1, 3, ROWS).astype(float).tolist(), "LIMIT_BAL": (rng.random(ROWS) * 1e5).tolist()}
    return found | {TARGET: [float(k % 2) for k in range(ROWS)]}


def keep_as_scikit_learn_does(folder: Path, columns: dict[str, list[float]], nominal: tuple[str, ...]) -> None:
    """The ARFF file and its descriptions, under the paths of their addresses."""
    names = [f"x{number}" for number in range(1, len(FEATURES) + 1)] + ["y"]
    kinds = ["nominal" if name in nominal else "numeric" for name in columns]
    allowed = [sorted({f"{value:g}" for value in values}, reverse=True) for values in columns.values()]
    head = [
        f"@ATTRIBUTE {name} " + (f"{{{','.join(each)}}}" if kind == "nominal" else "REAL")
        for name, kind, each in zip(names, kinds, allowed)
    ]
    rows = [",".join(f"{cell!r}" if cell % 1 else f"{cell:g}" for cell in row) for row in zip(*columns.values())]
    arff = "\n".join(["@RELATION credit", *head, "@DATA", *rows, ""]).encode()
    features = [
        {
            "index": str(index),
            "name": name,
            "data_type": kind,
            "is_target": str(name == "y").lower(),
            "is_ignore": "false",
            "is_row_identifier": "false",
            "number_of_missing_values": "0",
        }
        for index, (name, kind) in enumerate(zip(names, kinds))
    ]
    description = {
        "id": str(OPENML),
        "name": "credit",
        "version": "1",
        "format": "ARFF",
        "status": "active",
        "description": "made up",
        "url": "https://www.openml.org/data/v1/download/1/credit.arff",
        "md5_checksum": hashlib.md5(arff).hexdigest(),
    }
    files = {
        f"api/v1/json/data/{OPENML}": json.dumps({"data_set_description": description}).encode(),
        f"api/v1/json/data/features/{OPENML}": json.dumps({"data_features": {"feature": features}}).encode(),
        f"api/v1/json/data/qualities/{OPENML}": json.dumps(
            {"data_qualities": {"quality": [{"name": "NumberOfInstances", "value": str(ROWS)}]}}
        ).encode(),
        "data/v1/download/1/credit.arff": arff,
    }
    for name, content in files.items():
        path = folder / "openml" / "openml.org" / f"{name}.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content))


@pytest.mark.parametrize("nominal", [(), CATEGORICAL, (*CATEGORICAL, TARGET)])
def test_what_openml_gives_is_kept_under_the_names_of_the_table(
    nominal: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DECOCT_CACHE", str(tmp_path))
    columns = table()
    keep_as_scikit_learn_does(tmp_path / "credit_default", columns, nominal)
    found = _fetch(offline=False)
    assert tuple(found.names) == (*FEATURES, TARGET)
    for name, values in columns.items():
        assert [float(each) for each in found.column(name, "target")] == values
    opened = CreditDefault().open(offline=True)
    assert sum(map(len, opened.splits.values())) == ROWS
