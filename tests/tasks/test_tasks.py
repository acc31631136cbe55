"""All tasks alike: resolving, unlabelled targets, losses, programs, scores; what models return and loaders give."""

import numpy as np
import pytest
import torch
from task_toys import Returning, network, predictor
from torch import nn

from decoct.data.base import Dataset, Split
from decoct.data.sources import Batches, ordered
from decoct.errors import PathError, RecipeError
from decoct.outputs import Batch, Needs, Outputs
from decoct.spec import Choice
from decoct.tasks.base import Task
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.regression import Regression
from decoct.tasks.tabular_classification import TabularClassification
from decoct.tasks.text_classification import TextClassification


def test_resolved_task_is_plain_data(case: tuple[Task, Dataset, nn.Module]) -> None:
    task, data, _ = case
    assert task.resolve(data) == task
    again = Choice("decoct.tasks").validate(task.plain())
    assert again == task
    assert again.digest() == task.digest()


def test_targets_of_unlabelled_samples_never_leave_the_split(case: tuple[Task, Dataset, nn.Module]) -> None:
    task, data, _ = case
    train = data.splits["train"]
    hidden = train if train.labelled is not None else None
    if hidden is None:
        pytest.skip("all are labelled here")
    for batch in Batches(train, task.collate, batch_size=7, seed=0, augment=True):
        assert batch.labelled is not None
        target = batch.target.reshape(len(batch), -1)[~batch.labelled]
        assert bool((torch.isnan(target) | (target == -100)).all())
        assert task.answer.items(batch) == batch.labelled.sum()
        kept = batch.target.reshape(len(batch), -1)[batch.labelled]
        assert not bool((torch.isnan(kept) | (kept == -100)).any())


def test_loss_of_a_mixed_batch_is_the_loss_of_its_labelled_part(case: tuple[Task, Dataset, nn.Module]) -> None:
    task, data, _ = case
    split = data.splits["train"]
    batch = task.collate(split, np.arange(20))
    labelled = torch.ones(20, dtype=torch.bool) if batch.labelled is None else batch.labelled
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, task.reading("student").interface.width, generator=generator, requires_grad=True)
    loss = task.answer.loss(Outputs(logits), batch)
    part = Batch({"student": torch.zeros(int(labelled.sum()))}, batch.target[labelled])
    alone = task.answer.loss(Outputs(logits.detach()[labelled]), part)
    torch.testing.assert_close(loss.detach(), alone)
    loss.backward()
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[~labelled].any()


def test_loss_without_labels_is_zero_with_a_gradient(case: tuple[Task, Dataset, nn.Module]) -> None:
    task, data, _ = case
    batch = task.collate(data.splits["test"], np.arange(4))
    hidden = Batch(batch.inputs, batch.target, torch.zeros(4, dtype=torch.bool))
    logits = torch.randn(4, task.reading("student").interface.width, requires_grad=True)
    loss = task.answer.loss(Outputs(logits), hidden)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
    assert task.answer.items(hidden) == 0


def test_a_split_without_targets_is_unlabelled(case: tuple[Task, Dataset, nn.Module]) -> None:
    task, data, model = case
    split = data.splits["test"]
    columns = {name: column for name, column in split.columns.items() if name not in ("label", "value")}
    batch = task.collate(Split(columns, split.keys), np.arange(5))
    assert batch.labelled is not None
    assert not batch.labelled.any()
    assert task.answer.items(batch) == 0
    assert task.answer.loss(task.forward(network(task, model), batch, Needs(), "student"), batch).item() == 0


def test_forward_is_the_program(case: tuple[Task, Dataset, nn.Module]) -> None:
    task, data, model = case
    batch = task.collate(data.splits["test"], np.arange(11))
    program = task.reading("student").program(model).eval()
    with torch.no_grad():
        fed = {name: torch.from_numpy(value) for name, value in task.reading("student").feed(batch).items()}
        exported = program(**fed)
        logits = task.forward(network(task, model), batch, Needs(), "student").logits
    if isinstance(task, Regression):
        exported = (exported - task.target_mean[0]) / task.target_std[0]
    torch.testing.assert_close(exported, logits, atol=1e-4, rtol=1e-4)
    example = task.reading("student").example(3)
    assert {n: (t.dtype, t.ndim) for n, t in example.items()} == {n: (t.dtype, t.ndim) for n, t in fed.items()}
    assert set(task.reading("student").axes()) == set(example)
    assert program(**example).shape == (3, task.reading("student").interface.width)


def test_scores_have_the_main_metric_first(case: tuple[Task, Dataset, nn.Module]) -> None:
    task, data, model = case
    scores = task.score(predictor(task, model), ordered(data.splits["test"], task.collate, 8))
    assert next(iter(scores)) == task.metric[0]
    assert all(isinstance(value, float) for value in scores.values())
    batches = ordered(data.splits["test"], task.collate, 8)
    same = task.tallied(predictor(task, model), batches, predictor(task, model)).fidelity
    assert same in ({"agreement": 1.0, "kl": 0.0}, {"rmse_to_teacher": 0.0})


def test_features_are_captured(images: Dataset) -> None:
    task = ImageClassification().resolve(images)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6 * 9 * 3, 4))
    batch = task.collate(images.splits["test"], np.arange(3))
    outputs = task.forward(network(task, model), batch, Needs(frozenset({"0", "1"})), "student")
    assert outputs.features["0"].shape == (3, 162)
    assert torch.equal(outputs.features["1"], outputs.logits)
    with pytest.raises(PathError, match="no module '2'"):
        task.forward(network(task, model), batch, Needs(frozenset({"2"})), "student")


@pytest.mark.parametrize(
    ("kind", "message"), [("tuple", "a tuple"), ("mapping", "a mapping with scores"), ("wide", r"\[3, 9\]")]
)
def test_models_that_return_something_else(images: Dataset, kind: str, message: str) -> None:
    task = ImageClassification().resolve(images)
    logits = torch.zeros(3, 9)
    raw = {"tuple": (logits, 1), "mapping": {"scores": logits}, "wide": logits}[kind]
    batch = task.collate(images.splits["test"], np.arange(3))
    with pytest.raises(RecipeError, match=message):
        task.forward(network(task, Returning(raw)), batch, Needs(), "student")
    right = {"logits": logits[:, :4]}
    found = task.forward(network(task, Returning(right)), batch, Needs(), "student")
    assert torch.equal(found.logits, logits[:, :4])


def test_wrong_data_for_the_task(images: Dataset, table: Dataset) -> None:
    with pytest.raises(RecipeError, match="the data have features, label and no images"):
        ImageClassification().resolve(table)
    with pytest.raises(RecipeError, match="the data have image, label"):
        TabularClassification().resolve(images)
    with pytest.raises(RecipeError, match="no texts"):
        TextClassification().resolve(images)
    with pytest.raises(RecipeError, match="the data hold classes"):
        Regression().resolve(table)
    with pytest.raises(RecipeError, match=r"task\.mean: 1 numbers for images of 3 channels"):
        ImageClassification(mean=(0.5,), std=(0.5,)).resolve(images)


def test_raw_inputs_reach_the_model_as_they_come() -> None:
    task = ImageClassification(raw=True)
    x = torch.randn(4, 3, 2, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 7))
    batch = task.from_loader((x, torch.tensor([0, 6, 2, 1])))
    assert torch.equal(task.forward(network(task, model), batch, Needs(), "student").logits, model(x))
    scores = task.score(predictor(task, model), [batch])
    assert next(iter(scores)) == "accuracy"
    assert task.tallied(predictor(task, model), [batch]).confusion[1].shape == (7, 7)


def test_shape_that_is_not_known() -> None:
    with pytest.raises(RecipeError, match=r"task\.shape: not known"):
        ImageClassification(raw=True).reading("student").example()
    with pytest.raises(RecipeError, match=r"task\.classes: not known"):
        _ = ImageClassification(raw=True, shape=(1, 2, 2)).reading("student").interface
    task = ImageClassification(raw=True, classes=("a", "b"))
    batch = task.from_loader(torch.zeros(2, 1, 2, 2))
    with pytest.raises(RecipeError, match=r"task\.classes: 2 names, the model gives 3"):
        task.shaped_by(batch, 3)
