"""Each task: resolving, unlabelled targets, losses, preprocessing and programs against oracles."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from decoct.data.base import Dataset, Split
from decoct.data.hashing import keyed
from decoct.data.sources import Batches, ordered
from decoct.errors import DataError, PathError, RecipeError
from decoct.outputs import Batch, Needs, Outputs
from decoct.spec import Choice
from decoct.tasks.base import Task
from decoct.tasks.image_classification import ImageClassification, channel_statistics
from decoct.tasks.inputs.augment import Augment
from decoct.tasks.inputs.tokenizers import WordPiece
from decoct.tasks.regression import Regression
from decoct.tasks.tabular_classification import TabularClassification
from decoct.tasks.text_classification import TextClassification


class TextNet(nn.Module):
    """The smallest net over ids and mask."""

    def __init__(self, vocabulary: int, outputs: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 4)
        self.head = nn.Linear(4, outputs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        weight = attention_mask.unsqueeze(-1).to(torch.float32)
        return self.head((self.embed(input_ids) * weight).sum(1) / weight.sum(1))


@pytest.fixture(params=["images", "table", "numbers", "texts"])
def case(request: pytest.FixtureRequest) -> tuple[Task, Dataset, nn.Module]:
    data = request.getfixturevalue(request.param)
    task: Task = {
        "images": ImageClassification(size=5, teacher_size=7),
        "table": TabularClassification(),
        "numbers": Regression(),
        "texts": TextClassification(tokenizer=WordPiece(size=40), max_length=10),
    }[request.param].resolve(data)
    torch.manual_seed(0)
    interface = task.interface("student")
    if request.param == "texts":
        return task, data, TextNet(interface.vocabulary or 0, interface.outputs)
    width = int(np.prod(interface.shape))
    return task, data, nn.Sequential(nn.Flatten(), nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, interface.outputs))


def predictor(task: Task, model: nn.Module, side: str = "student") -> Any:
    return lambda batch: task.forward(model, batch, Needs(), side)


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
        assert task.items(batch) == batch.labelled.sum()
        kept = batch.target.reshape(len(batch), -1)[batch.labelled]
        assert not bool((torch.isnan(kept) | (kept == -100)).any())


def test_loss_of_a_mixed_batch_is_the_loss_of_its_labelled_part(case: tuple[Task, Dataset, nn.Module]) -> None:
    task, data, _ = case
    split = data.splits["train"]
    batch = task.collate(split, np.arange(20))
    labelled = torch.ones(20, dtype=torch.bool) if batch.labelled is None else batch.labelled
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, task.interface("student").outputs, generator=generator, requires_grad=True)
    loss = task.loss(Outputs(logits), batch)
    part = Batch({"student": torch.zeros(int(labelled.sum()))}, batch.target[labelled])
    alone = task.loss(Outputs(logits.detach()[labelled]), part)
    torch.testing.assert_close(loss.detach(), alone)
    loss.backward()
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[~labelled].any()


def test_loss_without_labels_is_zero_with_a_gradient(case: tuple[Task, Dataset, nn.Module]) -> None:
    task, data, _ = case
    batch = task.collate(data.splits["test"], np.arange(4))
    hidden = Batch(batch.inputs, batch.target, torch.zeros(4, dtype=torch.bool))
    logits = torch.randn(4, task.interface("student").outputs, requires_grad=True)
    loss = task.loss(Outputs(logits), hidden)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
    assert task.items(hidden) == 0


def test_a_split_without_targets_is_unlabelled(case: tuple[Task, Dataset, nn.Module]) -> None:
    task, data, model = case
    split = data.splits["test"]
    columns = {name: column for name, column in split.columns.items() if name not in ("label", "value")}
    batch = task.collate(Split(columns, split.keys), np.arange(5))
    assert batch.labelled is not None
    assert not batch.labelled.any()
    assert task.items(batch) == 0
    assert task.loss(task.forward(model, batch, Needs(), "student"), batch).item() == 0


def test_classification_loss_is_bitwise_torchs(images: Dataset) -> None:
    task = ImageClassification().resolve(images)
    batch = task.collate(images.splits["test"], np.arange(33))
    logits = torch.randn(33, 4, requires_grad=True)
    other = logits.detach().clone().requires_grad_()
    ours = task.loss(Outputs(logits), batch)
    theirs = nn.functional.cross_entropy(other, batch.target)
    ours.backward()
    theirs.backward()
    assert torch.equal(ours, theirs)
    assert torch.equal(logits.grad, other.grad)


def test_forward_is_the_program(case: tuple[Task, Dataset, nn.Module]) -> None:
    task, data, model = case
    batch = task.collate(data.splits["test"], np.arange(11))
    program = task.program(model, "student").eval()
    with torch.no_grad():
        fed = {name: torch.from_numpy(value) for name, value in task.feed(batch, "student").items()}
        exported = program(**fed)
        logits = task.forward(model, batch, Needs(), "student").logits
    if isinstance(task, Regression):
        exported = (exported - task.target_mean[0]) / task.target_std[0]
    torch.testing.assert_close(exported, logits, atol=1e-4, rtol=1e-4)
    example = task.example("student", 3)
    assert {n: (t.dtype, t.ndim) for n, t in example.items()} == {n: (t.dtype, t.ndim) for n, t in fed.items()}
    assert set(task.axes("student")) == set(example)
    assert program(**example).shape == (3, task.interface("student").outputs)


def test_scores_have_the_main_metric_first(case: tuple[Task, Dataset, nn.Module]) -> None:
    task, data, model = case
    scores = task.score(predictor(task, model), ordered(data.splits["test"], task.collate, 8))
    assert next(iter(scores)) == task.metric[0]
    assert all(isinstance(value, float) for value in scores.values())
    same = task.fidelity(predictor(task, model), predictor(task, model), ordered(data.splits["test"], task.collate, 8))
    assert same in ({"agreement": 1.0, "kl": 0.0}, {"rmse_to_teacher": 0.0})


def test_scores_count_labelled_samples_only(images: Dataset) -> None:
    task = ImageClassification().resolve(images)
    train = images.splits["train"]
    truth = train.columns["label"]

    def right(batch: Batch) -> Outputs:
        places = [int(np.flatnonzero(train.keys == key)[0]) for key in batch.keys]
        return Outputs(torch.nn.functional.one_hot(torch.from_numpy(truth[places]), 4).float())

    names, matrix = task.confusion(right, ordered(train, task.collate, 16))
    assert names == ("a", "b", "c", "d")
    assert matrix.sum() == train.labelled.sum() == 20
    assert (matrix == np.diag([5, 5, 5, 5])).all()
    assert task.score(right, ordered(train, task.collate, 16))["accuracy"] == 1.0
    assert task.per_class(right, ordered(train, task.collate, 16)) == dict.fromkeys("abcd", 1.0)


def test_features_are_captured(images: Dataset) -> None:
    task = ImageClassification().resolve(images)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6 * 9 * 3, 4))
    batch = task.collate(images.splits["test"], np.arange(3))
    outputs = task.forward(model, batch, Needs(frozenset({"0", "1"})), "student")
    assert outputs.features["0"].shape == (3, 162)
    assert torch.equal(outputs.features["1"], outputs.logits)
    with pytest.raises(PathError, match="no module '2'"):
        task.forward(model, batch, Needs(frozenset({"2"})), "student")


@pytest.mark.parametrize(
    ("kind", "message"), [("tuple", "a tuple"), ("mapping", "a mapping with scores"), ("wide", r"\[3, 9\]")]
)
def test_models_that_return_something_else(images: Dataset, kind: str, message: str) -> None:
    task = ImageClassification().resolve(images)
    logits = torch.zeros(3, 9)
    raw = {"tuple": (logits, 1), "mapping": {"scores": logits}, "wide": logits}[kind]
    with pytest.raises(RecipeError, match=message):
        task.outputs(raw)
    assert torch.equal(task.outputs({"logits": logits[:, :4]}).logits, logits[:, :4])


# Images


def bilinear(pixels: np.ndarray, size: int) -> np.ndarray:
    """Bilinear resize of `[C, H, W]` float64 with half-pixel centres and clamped borders."""
    for axis in (1, 2):
        length = pixels.shape[axis]
        centre = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, None)
        low = np.minimum(np.floor(centre).astype(int), length - 1)
        high, part = np.minimum(low + 1, length - 1), centre - low
        part = part.reshape((-1, 1) if axis == 1 else (1, -1))
        pixels = np.take(pixels, low, axis) * (1 - part) + np.take(pixels, high, axis) * part
    return pixels


@pytest.mark.parametrize(("side", "size"), [("student", 5), ("teacher", 14)])
def test_image_preprocessing_against_numpy(images: Dataset, side: str, size: int) -> None:
    task = ImageClassification(size=5, teacher_size=14, teacher_mean=(0.4, 0.5, 0.6), teacher_std=(0.2, 0.3, 0.1))
    task = task.resolve(images)
    batch = task.collate(images.splits["test"], np.arange(6))
    mean, std = (task.teacher_mean, task.teacher_std) if side == "teacher" else (task.mean, task.std)
    found = task.preprocessing(side)(batch.side(side)).numpy()
    for image, ours in zip(images.splits["test"].columns["image"], found):
        expected = bilinear(image.transpose(2, 0, 1) / 255.0, size)
        expected = (expected - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert task.interface(side).shape == (3, size, size)


def test_channel_statistics_against_numpy(images: Dataset) -> None:
    pixels = images.splits["train"].columns["image"]
    mean, std = channel_statistics(pixels)
    np.testing.assert_allclose(mean, (pixels / 255.0).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (pixels / 255.0).std((0, 1, 2)), rtol=1e-12)
    assert channel_statistics(np.full((2, 3, 3, 1), 7, np.uint8))[1] == (1.0,)


def test_augmentation_reaches_both_sides_alike_and_only_in_training(images: Dataset) -> None:
    task = ImageClassification(augment=Augment(flip=True, crop=2)).resolve(images)
    split, indices = images.splits["train"], np.arange(30)
    seeds = keyed("view", split.keys[indices])
    plain, varied = task.collate(split, indices), task.collate(split, indices, seeds=seeds, view=3)
    assert torch.equal(plain.side("student"), torch.from_numpy(split.columns["image"][:30].transpose(0, 3, 1, 2)))
    assert not torch.equal(varied.side("student"), plain.side("student"))
    assert varied.side("student") is varied.side("teacher")
    assert varied.view == 3
    assert torch.equal(task.collate(split, indices[5:9], seeds=seeds[5:9]).side("student"), varied.side("student")[5:9])


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


# Tables


@pytest.mark.parametrize("encoding", ["one_hot", "ordinal"])
def test_tabular_preprocessing_against_scikit_learn(table: Dataset, encoding: str) -> None:
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    task = TabularClassification(encoding=encoding).resolve(table)
    train, test = (table.splits[name].columns["features"].copy() for name in ("train", "test"))
    test[0, 1] = 9.0  # a category that training never saw
    numeric = [0, 2] if encoding == "one_hot" else [0, 1, 2]
    scaled = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    steps = [("numbers", scaled, numeric)]
    if encoding == "one_hot":
        steps.append(("kinds", OneHotEncoder(categories=[[1.0, 2.0, 5.0]], handle_unknown="ignore"), [1]))
    oracle = ColumnTransformer(steps, sparse_threshold=0).fit(train)
    found = task.preprocessing("student")(torch.from_numpy(test.astype(np.float32)))
    np.testing.assert_allclose(found.numpy(), oracle.transform(test), atol=1e-5)
    assert task.interface("student").shape == (found.shape[1],)


def test_tabular_main_metric(table: Dataset) -> None:
    assert TabularClassification().resolve(table).metric == ("auc", "max")
    assert TabularClassification(metric_name="f1").resolve(table).metric == ("f1", "max")


def test_regression_scores_in_the_units_of_the_target(numbers: Dataset) -> None:
    task = Regression().resolve(numbers)
    test = numbers.splits["test"]
    truth = test.columns["value"]
    guess = truth + np.random.default_rng(0).normal(0, 1e4, len(truth))

    def predict(batch: Batch) -> Outputs:
        places = [int(np.flatnonzero(test.keys == key)[0]) for key in batch.keys]
        return Outputs(torch.from_numpy((guess[places] - task.target_mean[0]) / task.target_std[0])[:, None])

    scores = task.score(predict, ordered(test, task.collate, 7))
    assert scores["rmse"] == pytest.approx(np.sqrt(((guess - truth) ** 2).mean()), rel=1e-6)
    assert scores["mae"] == pytest.approx(np.abs(guess - truth).mean(), rel=1e-6)
    assert scores["r2"] == pytest.approx(
        1 - ((guess - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum(), rel=1e-5
    )
    zero = lambda batch: Outputs(torch.zeros(len(batch), 1))  # noqa: E731
    distance = task.fidelity(predict, zero, ordered(test, task.collate, 7))["rmse_to_teacher"]
    assert distance == pytest.approx(np.sqrt(((guess - task.target_mean[0]) ** 2).mean()), rel=1e-6)


def test_regression_statistics_come_from_labelled_samples(numbers: Dataset) -> None:
    task = Regression().resolve(numbers)
    train = numbers.splits["train"]
    known = train.columns["value"][train.labelled]
    assert len(known) == 30
    assert task.target_mean == (known.mean(),)
    assert task.target_std == (known.std(),)


# Texts


def test_text_batches_are_what_the_tokenizer_says(texts: Dataset) -> None:
    from tokenizers import Tokenizer

    task = TextClassification(tokenizer=WordPiece(size=40), max_length=8, teacher_max_length=5).resolve(texts)
    split = texts.splits["test"]
    indices = np.array([3, 1, 7, 7, 0])
    batch = task.collate(split, indices)
    for side in ("student", "teacher"):
        shipped = Tokenizer.from_str(task.assets(side)["tokenizer.json"])
        expected = shipped.encode_batch([split.columns["text"][i] for i in indices])
        assert batch.side(side)["input_ids"].tolist() == [each.ids for each in expected]
        assert batch.side(side)["attention_mask"].tolist() == [each.attention_mask for each in expected]
        assert batch.side(side)["input_ids"].shape[1] == max(sum(each.attention_mask) for each in expected)
    assert task.interface("teacher").shape == (5,)


def test_sides_with_one_tokenizer_share_their_inputs(texts: Dataset) -> None:
    task = TextClassification(tokenizer=WordPiece(size=40)).resolve(texts)
    batch = task.collate(texts.splits["test"], np.arange(3))
    assert batch.side("student") is batch.side("teacher")


# Loaders


def test_from_loader_takes_what_loaders_yield() -> None:
    task = ImageClassification(raw=True)
    x, z, y = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 5, 5), torch.tensor([0, 1, 1, 0])
    assert torch.equal(task.from_loader((x, y)).side("teacher"), x)
    three = task.from_loader([x, z, y.int()])
    assert torch.equal(three.side("teacher"), z)
    assert three.target.dtype == torch.int64
    assert torch.equal(task.from_loader({"image": x, "label": y}).side("student"), x)
    assert torch.equal(task.from_loader({"student": x, "teacher": z, "target": y}).side("teacher"), z)
    alone = task.from_loader([x])
    assert alone.labelled is not None
    assert not alone.labelled.any()
    assert task.items(alone) == 0
    partly = task.from_loader((x, torch.tensor([0, -100, 1, -100])))
    assert partly.labelled.tolist() == [True, False, True, False]
    shaped = task.shaped_by(three, 7)
    assert shaped.classes == tuple("0123456")
    assert shaped.interface("student").shape == (3, 2, 2)
    assert shaped.example("teacher")["image"].shape == (2, 3, 5, 5)


def test_raw_inputs_reach_the_model_as_they_come() -> None:
    task = ImageClassification(raw=True)
    x = torch.randn(4, 3, 2, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 7))
    batch = task.from_loader((x, torch.tensor([0, 6, 2, 1])))
    assert torch.equal(task.forward(model, batch, Needs(), "student").logits, model(x))
    scores = task.score(predictor(task, model), [batch])
    assert next(iter(scores)) == "accuracy"
    assert task.confusion(predictor(task, model), [batch])[1].shape == (7, 7)


def test_text_from_a_transformers_loader() -> None:
    task = TextClassification(raw=True)
    item = {
        "input_ids": torch.ones(2, 3, dtype=torch.int64),
        "attention_mask": torch.ones(2, 3),
        "labels": torch.tensor([0, 1]),
    }
    batch = task.from_loader(item)
    assert set(batch.side("student")) == {"input_ids", "attention_mask"}
    assert len(batch) == 2


def test_regression_from_a_loader() -> None:
    task = Regression(raw=True)
    batch = task.from_loader((torch.randn(3, 4), torch.tensor([1.0, float("nan"), 3.0])))
    assert batch.target.shape == (3, 1)
    assert batch.labelled.tolist() == [True, False, True]
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    outputs = task.forward(model, batch, Needs(), "student")
    assert outputs.logits.shape == (3, 1)
    expected = (outputs.logits[[0, 2], 0] - torch.tensor([1.0, 3.0])).square().mean()
    torch.testing.assert_close(task.loss(outputs, batch), expected)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("text", "yields a str"),
        ((1, 2, 3, 4), "a tuple of 4"),
        ((torch.zeros(2, 3), torch.zeros(2)), r"target is torch.float32 \[2\]"),
        ((torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64)), "2 inputs with 3 targets"),
        ({"x": torch.zeros(2), "label": torch.tensor([0, 0]), "target": 1}, "both target and label"),
        ({"label": torch.tensor([0, 0])}, "and no inputs"),
        ({"a": torch.zeros(2), "b": torch.zeros(2), "label": torch.tensor([0, 0])}, "a mapping with a, b"),
    ],
)
def test_what_loaders_must_not_yield(item: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ImageClassification(raw=True).from_loader(item)


def test_labels_outside_the_classes() -> None:
    task = ImageClassification(raw=True, classes=("a", "b"))
    with pytest.raises(DataError, match=r"holds \[-3, 5\]; classes are 0 to 1"):
        task.from_loader((torch.zeros(3, 1), torch.tensor([5, -3, 1])))


def test_shape_that_is_not_known() -> None:
    with pytest.raises(RecipeError, match=r"task\.shape: not known"):
        ImageClassification(raw=True).example("student")
    with pytest.raises(RecipeError, match=r"task\.classes: not known"):
        ImageClassification(raw=True, shape=(1, 2, 2)).interface("student")
    task = ImageClassification(raw=True, classes=("a", "b"))
    batch = task.from_loader(torch.zeros(2, 1, 2, 2))
    with pytest.raises(RecipeError, match=r"task\.classes: 2 names, the model gives 3"):
        task.shaped_by(batch, 3)
