"""Data sets in the place of loaders, no teacher, fitted estimators and folders as teachers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import decoct as dc
from decoct.data.text_files import TextFiles
from decoct.errors import DataError, RecipeError
from pretrained_toys import reviews, sentiment


def samples(count: int = 96) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(count, 4, generator=generator)
    return TensorDataset(rows, (rows[:, 0] > 0).long())


def student() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 2)


def test_a_data_set_is_drawn_as_its_loader_is(tmp_path: Path) -> None:
    made = {}
    for name, train in (("set", samples()), ("loader", DataLoader(samples(), batch_size=32, shuffle=True))):
        run = dc.distill(
            None,
            student(),
            train,
            samples(),
            task="tabular_classification",
            epochs=3,
            out=tmp_path / name,
            batch_size=32,
        )
        assert [step.use for step in run.run.recipe.steps] == ["train"]
        made[name] = run.student.weight
    assert torch.equal(made["set"], made["loader"])
    stored = dc.label(run.student, samples(), tmp_path / "labels", task="tabular_classification", dtype="float32")
    assert "96 answers" in stored.meta["summary"]
    record = dc.export(run.student, tmp_path / "m.onnx", example=samples())
    assert record["verified"]["agreement"] == 1.0


def test_a_fitted_model_of_scikit_learn_teaches(tmp_path: Path) -> None:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.svm import LinearSVC

    data = samples()
    rows, target = (each.numpy() for each in data.tensors)
    forest = RandomForestClassifier(10, max_depth=3, random_state=0).fit(rows, target)
    labels = dc.label(forest, data, tmp_path / "labels", task="tabular_classification", dtype="float32")
    from decoct.store.reading import Store

    store = Store.open(labels.folder)
    said = store.read(store.seen).logits.double().exp().numpy()
    theirs = forest.predict_proba(rows)
    np.testing.assert_allclose(np.sort(said[:, 1]), np.sort(theirs[:, 1]), atol=1e-6)
    other = RandomForestClassifier(10, max_depth=3, random_state=1).fit(rows, target)
    with pytest.raises(RecipeError):  # another forest is another teacher
        dc.label(other, data, tmp_path / "labels", task="tabular_classification", dtype="float32")
    with pytest.raises(DataError, match="LinearSVC gives no probabilities"):
        dc.distill(LinearSVC().fit(rows, target), student(), data, task="tabular_classification")


def test_a_path_is_a_teacher(tmp_path: Path) -> None:
    folder = sentiment(tmp_path / "mine")
    data = TextFiles(path=reviews(tmp_path / "r.csv", 40), text="text", target="label")
    task = dc.TextClassification(teacher_tokenizer={"use": "pretrained", "path": str(folder)}, max_length=64)
    run = dc.distill(str(folder), "bilstm", data, task=task, epochs=1, out=tmp_path / "run")
    assert run.run.recipe.models["big"].use == "transformers"
    with pytest.raises(RecipeError, match="nothing is there"):
        dc.distill("./nowhere", "bilstm", data, task=task)
