"""Files of XGBoost, LightGBM and skops against what these libraries said, and as teachers of a table.

`files/` holds models that the libraries saved, and in said.json what they predict for 40 rows with missing values.
"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from decoct.data.csv import CSV
from decoct.errors import DataError, RecipeError, ResourceError
from decoct.models.base import Interface
from decoct.models.estimator_file import EstimatorFile
from decoct.outputs import DENSE
from decoct.steps.base import Context
from decoct.steps.learning.teachers import open_teacher
from decoct.tasks.regression import Regression
from decoct.tasks.tabular_classification import TabularClassification
from decoct.training.engine import Engine

FILES = Path(__file__).parent / "files"
SAID = json.loads((FILES / "said.json").read_text())
ROWS = np.array(SAID["rows"], dtype=np.float32)  # None becomes NaN
NAMES = ("age", "income", "debt")
MODELS = sorted(each for each in FILES.iterdir() if each.suffix in (".json", ".txt") and each.name != "said.json")


def probabilities(found: torch.Tensor) -> np.ndarray:
    return found.double().exp().numpy()


@pytest.mark.parametrize("file", MODELS, ids=lambda each: each.name)
def test_it_answers_as_its_library_did(file: Path) -> None:
    expected = np.array(SAID[file.stem])
    outputs = expected.shape[1] if expected.ndim == 2 else 1
    found = EstimatorFile(path=file).build(Interface(kind="tabular", shape=(3,), outputs=outputs))
    said = found(torch.from_numpy(ROWS))
    if file.stem.endswith("number"):
        np.testing.assert_allclose(said[:, 0], expected, rtol=1e-5, atol=1e-5)
    elif expected.ndim == 1:
        np.testing.assert_allclose(probabilities(said)[:, 1], expected, atol=1e-6)
    else:
        np.testing.assert_allclose(probabilities(said), expected, atol=1e-6)


def test_ubj_is_read_where_xgboost_is() -> None:
    pytest.importorskip("xgboost")
    rows = torch.from_numpy(ROWS)
    json_, ubj = (
        EstimatorFile(path=FILES / f"xgboost_two.{ending}").build(Interface(kind="tabular", shape=(3,), outputs=2))
        for ending in ("json", "ubj")
    )
    assert torch.equal(json_(rows), ubj(rows))


def test_what_needs_a_library_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name, file in (("xgboost", "xgboost_two.ubj"), ("skops.io", "pipeline.skops")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ResourceError, match=f"pip install {name.partition('.')[0]}"):
            EstimatorFile(path=FILES / file).brings()


def table(file: Path, order: tuple[str, ...] = NAMES, names: tuple[str, str] = ("0", "1")) -> CSV:
    """The rows of said.json, columns in another order, with a column that no model knows."""
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow([*order, "further", "target"])
        for number, row in enumerate(ROWS):
            cells = dict(zip(NAMES, ("" if np.isnan(each) else repr(float(each)) for each in row)))
            writer.writerow([*(cells[name] for name in order), number / 7, names[number % 2]])
    return CSV(path=file, target="target")


def answers(spec: EstimatorFile, task, data) -> tuple[np.ndarray, np.ndarray]:
    """Logits as a teacher on the training split, and which rows of the table these are."""
    opened = data.open()
    resolved, split = task.resolve(opened), opened.splits["train"]
    context = Context(resolved, opened, "x", Path(), Path(), seed=0)
    batch = resolved.collate(split, np.arange(len(split)))
    with open_teacher(spec, context, Engine("cpu"), DENSE) as predict:
        found = predict(batch).logits.double().numpy()
    return found, np.rint(split.columns["features"][:, list(opened.features).index("further")] * 7).astype(int)


@pytest.mark.parametrize("file", ["xgboost_two.json", "lightgbm_two.txt"])
def test_columns_and_classes_are_found_by_name(file: str, tmp_path: Path) -> None:
    data = table(tmp_path / "t.csv", ("debt", "age", "income"), ("bad", "good"))
    with pytest.raises(RecipeError, match=r"classes LABEL_0, LABEL_1, the data have bad, good.*labels: \[bad, good\]"):
        answers(EstimatorFile(path=FILES / file), TabularClassification(), data)
    spec = EstimatorFile(path=FILES / file, labels=("good", "bad"))  # class 0 is good
    found, rows = answers(spec, TabularClassification(), data)
    np.testing.assert_allclose(np.exp(found)[:, 0], np.array(SAID[Path(file).stem])[rows], atol=1e-6)


def test_numbers_are_brought_to_the_scale_of_the_task(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    table(file, names=("3", "5"))
    task = Regression()
    data = CSV(path=file, target="target", kind="regression")
    found, rows = answers(EstimatorFile(path=FILES / "xgboost_number.json"), task, data)
    resolved = task.resolve(data.open())
    own = found[:, 0] * resolved.target_std[0] + resolved.target_mean[0]
    np.testing.assert_allclose(own, np.array(SAID["xgboost_number"])[rows], rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    data = table(tmp_path / "t.csv", NAMES)
    (tmp_path / "t.csv").write_text((tmp_path / "t.csv").read_text().replace("debt", "wealth"))
    with pytest.raises(RecipeError, match=r"reads age, income, debt; the data have .*\(debt are missing\)"):
        answers(EstimatorFile(path=FILES / "lightgbm_two.txt"), TabularClassification(), data)
    for text, message in (("{}", "damaged"), ('{"learner": {"objective": {"name": "rank:ndcg"}}}', "damaged")):
        (tmp_path / "m.json").write_text(text)
        with pytest.raises(DataError, match=message):
            EstimatorFile(path=tmp_path / "m.json").brings()
    changed = (FILES / "xgboost_two.json").read_text().replace("binary:logistic", "rank:ndcg")
    (tmp_path / "m.json").write_text(changed)
    with pytest.raises(DataError, match="objective is rank:ndcg; those read are binary:logistic"):
        EstimatorFile(path=tmp_path / "m.json").brings()
    (tmp_path / "m.txt").write_text("hello")
    with pytest.raises(DataError, match="no model of LightGBM"):
        EstimatorFile(path=tmp_path / "m.txt").brings()
    (tmp_path / "m.pkl").write_bytes(b"x")
    with pytest.raises(RecipeError, match=r"m\.pkl is of no known kind"):
        EstimatorFile(path=tmp_path / "m.pkl").brings()


def test_a_pipeline_of_scikit_learn_teaches_by_skops(tmp_path: Path) -> None:
    skops = pytest.importorskip("skops.io")
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    fitted = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, np.where(x[:, 0] > 0, "yes", "no"))
    skops.dump(fitted, tmp_path / "m.skops")
    spec = EstimatorFile(path=tmp_path / "m.skops")
    assert spec.brings().labels == ("no", "yes")
    rows = np.nan_to_num(ROWS)
    found = spec.build(Interface(kind="tabular", shape=(3,), outputs=2))(torch.from_numpy(rows))
    np.testing.assert_allclose(probabilities(found), fitted.predict_proba(rows.astype(float)), atol=1e-6)
    skops.dump(fitted.set_params(standardscaler=_Own()), tmp_path / "own.skops")
    with pytest.raises(DataError, match="does not know to be harmless"):
        EstimatorFile(path=tmp_path / "own.skops").brings()


class _Own:
    """A class that skops does not know."""

    def __init__(self) -> None:
        self.x = 1
