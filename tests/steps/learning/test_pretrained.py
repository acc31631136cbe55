"""Networks that were trained elsewhere, as teachers: their own ids, pixels and classes, or a refusal."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from decoct.data.image_folder import ImageFolder
from decoct.data.text_files import TextFiles
from decoct.errors import RecipeError
from decoct.models.transformers import Transformers
from decoct.outputs import DENSE
from decoct.recipe.recipe import Recipe
from decoct.runner.checking import check
from decoct.steps.base import Context
from decoct.steps.learning.pretrained import network_of
from decoct.steps.learning.teachers import open_teacher
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.text_classification import TextClassification
from decoct.training.engine import Engine
from pretrained_toys import photos, reviews, said_by, save_tokenizer, sentiment, vision_transformer

STEPS = [{"use": "distill", "name": "student", "inputs": {"model": "small", "teacher": "large"}}]


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentiment(tmp_path_factory.mktemp("fine_tuned"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TextFiles:
    return TextFiles(path=reviews(tmp_path_factory.mktemp("data") / "reviews.csv", 80), text="text", target="label")


def recipe(data, task: dict, large: dict, small: dict | str = "bilstm", steps: list | None = None) -> Recipe:
    plain = {"version": 1, "task": task, "data": data.plain(), "models": {"large": large, "small": small}}
    return Recipe.parse({**plain, "steps": steps or STEPS})


def texts(teacher: Path, **more) -> dict:
    return {"use": "text_classification", "teacher_tokenizer": {"use": "pretrained", "path": str(teacher)}, **more}


def answers(spec: Transformers, task, data, count: int) -> np.ndarray:
    """What a model says as a teacher, `[N, C]` in the order of the data's classes."""
    opened = data.open()
    resolved = task.resolve(opened)
    context = Context(resolved, opened, "x", Path(), Path(), seed=0)
    batch = resolved.collate(opened.splits["train"], np.arange(count))
    with open_teacher(spec, context, Engine("cpu"), DENSE) as predict:
        return predict(batch).logits.softmax(-1).numpy()


def test_a_teacher_answers_in_the_data_s_classes_what_transformers_says(fine_tuned: Path, data: TextFiles) -> None:
    found = answers(Transformers(path=fine_tuned), TextClassification.parse(texts(fine_tuned, max_length=64)), data, 12)
    opened = data.open()
    theirs = said_by(fine_tuned, list(opened.splits["train"].columns["text"][:12]))
    assert opened.classes == ("negative", "positive")  # the folder has them the other way round
    np.testing.assert_allclose(found, theirs[:, ::-1], atol=1e-5)
    labels = opened.splits["train"].columns["label"][:12]
    assert (found.argmax(1) == labels).all()


def test_an_image_teacher_sees_pixels_as_its_processor_makes_them(tmp_path: Path) -> None:
    from transformers import ViTForImageClassification, ViTImageProcessor

    folder, pictures = vision_transformer(tmp_path / "vit"), ImageFolder(path=photos(tmp_path / "photos"), size=24)
    said = {"teacher_mean": (0.5, 0.4, 0.3), "teacher_std": (0.2, 0.25, 0.3), "teacher_size": 32}
    task = ImageClassification(**said, teacher_resample="bicubic")
    found = answers(Transformers(path=folder), task, pictures, 4)
    images = pictures.open().splits["train"].columns["image"][np.arange(4)]
    processor = ViTImageProcessor.from_pretrained(folder)
    inputs = processor([Image.fromarray(each) for each in images], return_tensors="pt")
    with torch.no_grad():
        theirs = ViTForImageClassification.from_pretrained(folder).eval()(**inputs).logits.softmax(-1).numpy()
    np.testing.assert_allclose(found, theirs[:, ::-1], atol=5e-3)  # classes dark, light; theirs Light, Dark
    with pytest.raises(RecipeError, match=r"task\.teacher_mean: \[0\.5, 0\.4, 0\.3\].*task\.teacher_size: 32"):
        answers(Transformers(path=folder), ImageClassification(), pictures, 4)


def test_check_refuses_the_ids_of_another_vocabulary(fine_tuned: Path, data: TextFiles, tmp_path: Path) -> None:
    large = {"use": "transformers", "path": str(fine_tuned)}
    with pytest.raises(RecipeError, match=r"teacher_tokenizer: .*would read those of another one \(wordpiece"):
        check(recipe(data, {"use": "text_classification"}, large))
    save_tokenizer(tmp_path, spare=0)  # fewer ids than the model has, so that all of them can be looked up
    with pytest.raises(RecipeError, match=rf"'\[UNK\]' is 1 there and its id 4.*path: {fine_tuned}"):
        check(recipe(data, texts(tmp_path), large))
    student = [{"use": "train", "name": "s", "inputs": {"model": "small"}}]
    with pytest.raises(RecipeError, match=r"task\.tokenizer: .*or let it read as the teacher does"):
        check(recipe(data, {"use": "text_classification"}, large, large, student))
    check(recipe(data, texts(fine_tuned, max_length=64), large))
    with pytest.raises(RecipeError, match=r"cannot take inputs of 128"):
        check(recipe(data, texts(fine_tuned), {**large, "attention": "eager"}))


def test_check_refuses_a_folder_whose_tokenizer_is_lost(fine_tuned: Path, data: TextFiles, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((fine_tuned / name).read_bytes())
    large = {"use": "transformers", "path": str(tmp_path)}
    with pytest.raises(RecipeError, match=r"has no tokenizer beside it, so its ids are not those of wordpiece"):
        check(recipe(data, {"use": "text_classification", "max_length": 64}, large))
    check(recipe(data, texts(fine_tuned, max_length=64), large))


def test_a_body_without_a_head_is_trained_first(data: TextFiles, tmp_path: Path) -> None:
    folder = sentiment(tmp_path, None)
    large = {"use": "transformers", "path": str(folder)}
    with pytest.raises(RecipeError, match=r"without a trained head.*side: teacher"):
        check(recipe(data, texts(folder, max_length=64), large))
    train = {"use": "train", "name": "teacher", "inputs": {"model": "large"}, "side": "teacher"}
    then = {**STEPS[0], "inputs": {"model": "small", "teacher": "teacher"}}
    assert len(check(recipe(data, texts(folder, max_length=64), large, steps=[train, then]))) == 2


def test_other_classes_are_refused_with_both_lists_and_can_be_named(fine_tuned: Path, tmp_path: Path) -> None:
    data = TextFiles(path=reviews(tmp_path / "r.csv", 80, ("down", "up")), text="text", target="label")
    task = texts(fine_tuned, max_length=64)
    large = {"use": "transformers", "path": str(fine_tuned)}
    with pytest.raises(RecipeError, match="classes POSITIVE, NEGATIVE, the data have down, up"):
        check(recipe(data, task, large))
    named = Transformers(path=fine_tuned, labels=("up", "down"))
    found = answers(named, TextClassification.parse(task), data, 6)
    assert (found.argmax(1) == data.open().splits["train"].columns["label"][:6]).all()


def test_a_student_goes_on_from_a_head_that_knows_the_classes(fine_tuned: Path, data: TextFiles) -> None:
    """Trained further, the head keeps its rows; of other classes it is drawn afresh."""
    spec, opened = Transformers(path=fine_tuned), data.open()
    task = TextClassification.parse(texts(fine_tuned, max_length=64)).resolve(opened)
    theirs = spec.build(task.reading("teacher").interface).classifier.weight
    kept = network_of(spec, task, "teacher", {}).module.classifier.weight
    assert torch.equal(kept, theirs[[1, 0]])
    other = task.replace(classes=("a", "b"))
    assert not torch.equal(network_of(spec, other, "teacher", {}).module.classifier.weight, kept)


def test_a_vocabulary_alone_makes_the_same_tokenizer(fine_tuned: Path, tmp_path: Path) -> None:
    from decoct.tasks.inputs.tokenizers import Pretrained

    size = save_tokenizer(tmp_path, as_vocabulary=True)
    assert not (tmp_path / "tokenizer.json").exists()
    found, whole = (Pretrained(path=each).resolve(()) for each in (tmp_path, fine_tuned))
    assert found.vocabulary_size() == size
    text = "The film WAS superb"
    assert found.engine(16).encode(text).ids == whole.engine(16).encode(text).ids
    assert found.padding == "[PAD]"


def test_what_says_nothing_of_its_length_takes_any(fine_tuned: Path, tmp_path: Path) -> None:
    from decoct.models.folders import longest_text

    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30}))

    class Config:
        model_type, max_position_embeddings, pad_token_id = "roberta", 514, 1

    assert longest_text(tmp_path, Config()) == 512
    Config.max_position_embeddings = -1
    assert longest_text(tmp_path, Config()) is None
