"""Recipe: the graph of steps, its problems, and the nodes that seeds make of it."""

import pytest

import decoct as dc
from decoct.errors import RecipeError
from decoct.recipe.file import read
from decoct.recipe.graph import graph
from decoct.runner.keys import derive


def recipe(**changes):
    steps = changes.pop("steps", None) or (
        dc.Train(name="teacher", inputs={"model": "large"}),
        dc.Train(name="student_alone", inputs={"model": "small"}),
        dc.Distill(name="student", inputs={"model": "small", "teacher": "teacher"}),
        dc.Export(name="student_onnx"),
        dc.Export(name="teacher_onnx", inputs={"model": "teacher"}),
        dc.Benchmark(name="benchmark", inputs={"teacher": "teacher_onnx", "student": "student_onnx"}),
    )
    models = {"large": dc.SmallResNet(width=8), "small": dc.SmallResNet(width=4)}
    return dc.Recipe(task=dc.ImageClassification(), data=dc.Digits(), models=models, steps=steps, **changes)


def test_an_input_left_out_is_the_step_before():
    r = recipe()
    assert r.inputs_of(r.step("student_onnx")) == {"model": "student"}


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([dc.Train(name="a", inputs={"model": "larg"})], "did you mean large"),
        ([dc.Train(name="large", inputs={"model": "large"})], "taken by another"),
        ([dc.Distill(name="s", inputs={"model": "small"})], "inputs.teacher: missing"),
        ([dc.Train(name="a", inputs={"model": "large", "teecher": "small"})], "unknown role"),
        (
            [
                dc.Train(name="a", inputs={"model": "large"}),
                dc.Benchmark(name="b"),
                dc.Train(name="c", inputs={"model": "b"}),
            ],
            "is of kind records",
        ),
    ],
)
def test_a_broken_graph_is_refused(steps, message):
    with pytest.raises(RecipeError, match=message):
        recipe(steps=steps)


def test_python_and_data_agree():
    r = recipe(seed=3)
    names = {name: getattr(dc, name) for name in dc.__all__}
    assert eval(repr(r), names) == r
    assert dc.Recipe.parse(r.plain()) == r
    assert dc.Recipe.parse(r.plain(defaults=False)) == r


def test_seeds_repeat_the_student_and_not_the_teacher():
    folders = [node.folder for node in graph(recipe(), [0, 1])]
    assert folders == [
        "01-teacher",
        "02-student_alone",
        "02-student_alone.seed-1",
        "03-student",
        "03-student.seed-1",
        "04-student_onnx",
        "04-student_onnx.seed-1",
        "05-teacher_onnx",
        "06-benchmark",
    ]
    nodes = {node.folder: node for node in graph(recipe(), [0, 1])}
    assert nodes["03-student.seed-1"].inputs == {"model": ("small",), "teacher": ("01-teacher",)}
    assert nodes["06-benchmark"].inputs["student"] == ("04-student_onnx", "04-student_onnx.seed-1")


def test_seeds_all_repeats_the_teacher_too():
    nodes = {node.folder: node for node in graph(recipe(), [0, 1], seeds_all=True)}
    assert nodes["03-student.seed-1"].inputs["teacher"] == ("01-teacher.seed-1",)
    assert nodes["06-benchmark"].inputs["teacher"] == ("05-teacher_onnx", "05-teacher_onnx.seed-1")


def test_derived_seeds_differ_by_seed_and_name():
    seeds = {derive(seed, name) for seed in range(50) for name in ("small", "large")}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**31 for seed in seeds)


BEFORE = """\
task: {use: image_classification}
data: {use: digits}
models:
  small: {width: 8, use: small_resnet}
steps:
"""

PLACED = [
    (
        "  - {name: a, use: trian, inputs: {model: small}}",
        "6:20: steps[0].use: 'trian' is no step; did you mean train?",
    ),
    ("  - name: a\n    use: 7", "7:10: steps[0].use: `use` is 7; allowed: "),
    (
        "  - {use: train, name: a, objective: {weight: 2, use: kdd}, inputs: {model: small}}",
        "6:55: steps[0].objective.use: 'kdd' is no objective; did you mean kd",
    ),
    (
        "  - {use: train, name: a, inputs: {foo: small}}",
        "6:36: steps[0].inputs.foo: unknown role; train takes model, train",
    ),
    (
        "  - {use: train, name: a, inputs: {model: small}}\n  - {use: export, name: b}\n  - {use: distill, name: c}",
        "8:5: steps[2].inputs.teacher: missing; distill needs it: name a step or model",
    ),
    (
        "  - {use: benchmark, name: a, inputs: {x: small}}\n  - {use: export, name: b, inputs: {model: a}}",
        "6:40: steps[0].inputs.x: 'small' is a model that no step has made",
    ),
]


@pytest.mark.parametrize(("steps", "error"), PLACED)
def test_one_wrong_step_gives_one_error_at_its_place(steps: str, error: str) -> None:
    with pytest.raises(RecipeError) as caught:
        dc.Recipe.from_marked(read(BEFORE + steps))
    assert len(caught.value.problems) == 1
    assert str(caught.value).startswith(f"recipe.yaml:{error}")


@pytest.mark.parametrize("value", ["'7'", "1_000", "1:30", "true", "1e3", ".5e3", "5."])
def test_what_is_no_whole_number_is_refused_by_place_from_a_file_and_the_command_line(value: str) -> None:
    steps = "  - {use: train, name: a, batch_size: 4, inputs: {model: small}}"
    with pytest.raises(RecipeError, match=r"^recipe.yaml:6:27: steps\[0\].batch_size: Input should be a valid integer"):
        dc.Recipe.from_marked(read(BEFORE + steps.replace("4", value)))
    with pytest.raises(RecipeError, match=r"^command line: steps.a.batch_size=.*: steps\[0\].batch_size: Input should"):
        dc.Recipe.from_marked(read(BEFORE + steps), [f"steps.a.batch_size={value}"])


def test_a_wrong_use_from_the_command_line_is_placed_there() -> None:
    marked = read(BEFORE + "  - {use: train, name: a, inputs: {model: small}}")
    with pytest.raises(RecipeError, match=r"^command line: data.use=digitz: data.use: 'digitz' is no data set"):
        dc.Recipe.from_marked(marked, ["data.use=digitz"])


def test_a_path_that_nothing_would_read_is_refused() -> None:
    marked = read(BEFORE + "  - {use: train, name: a, inputs: {model: small}}")
    with pytest.raises(
        RecipeError, match=r"^command line: data.path=x: data.path: path is 'x', and digits has no files"
    ):
        dc.Recipe.from_marked(marked, ["data.path=x"])
