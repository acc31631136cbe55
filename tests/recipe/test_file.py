"""The YAML loader: its rules for scalars, its limits, its places, overrides, and writing back."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from decoct.errors import Problem, RecipeError
from decoct.recipe.file import Located, dump, locate, override, read, read_file, scalar

RECIPE = """\
version: 1
seed: 0
task: {use: image_classification}
models:
  small: {use: small_resnet, width: 8}
steps:
  - {use: train, name: teacher, budget: {epochs: 20}}
  - use: distill
    name: student
    inputs: {model: small, teacher: teacher}
    objective:
      - {use: kd, weight: 0.9,
         temprature: 4.0}
      - {use: cross_entropy, weight: 0.1}
"""


def failure(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read(text)
    assert all(isinstance(each, Located) for each in caught.value.problems)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("10", 10),
        ("-3", -3),
        ("+3", 3),
        ("0", 0),
        ("0.25", 0.25),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("True", "True"),
        ("1:30", "1:30"),
        ("2026-11-20", "2026-11-20"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("0o17", "0o17"),
        ("0.1.0", "0.1.0"),
        ("e5", "e5"),
        ("inf", "inf"),
        ("٣", "٣"),
    ],
)
def test_plain_scalars(text: str, value: object) -> None:
    for found in (scalar(text), read(f"a: {text}").data["a"], read(f"a: [1, {text or 'null'}]").data["a"][1]):
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize("text", ["010", "-010", "00", "00.5", "08", ".inf", "-.inf", ".nan", "1e999", "9" * 5000])
def test_ambiguous_or_not_finite_numbers_are_refused(text: str) -> None:
    assert failure(f"x: 1\na: {text}").startswith("recipe.yaml:2:4: a: ")
    assert read(f"a: '{text}'").data == {"a": text}


def test_quoted_text_stays_text() -> None:
    assert read("a: '1'\nb: \"true\"\nc: |-\n  null\n").data == {"a": "1", "b": "true", "c": "null"}


@pytest.mark.parametrize(
    ("text", "start", "words"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2", "recipe.yaml:4:3: b.c:", "given twice; the first is on line 3"),
        ("a: {x: 1, x: 2}", "recipe.yaml:1:11: a.x:", "given twice"),
        (
            "a: !!python/object/apply:os.system [ls]",
            "recipe.yaml:1:4: a:",
            "!!python/object/apply:os.system is refused",
        ),
        ("a: !!int '3'", "recipe.yaml:1:4: a:", "!!int is refused"),
        ("a: !custom 3", "recipe.yaml:1:4: a:", "!custom is refused"),
        ("a: 1\n\tb: 2", "recipe.yaml:2:1: ", "a tab; indent with spaces"),
        ("a:\n\t- 2", "recipe.yaml:2:1: a:", "a tab; indent with spaces"),
        ("a: [1, 2\nb: 3\n", "recipe.yaml:1:4: a", "the list [ ] is not closed"),
        ("a: {b: 1\nc: 3\n", "recipe.yaml:1:4: a", "the mapping { } is not closed"),
        ("a: 'x\nb: 2\n", "recipe.yaml:1:4: a", "the quotes are not closed"),
        ("a: 1\n b: 2\n", "recipe.yaml:2:3: ", "a `:` where none can stand"),
        ("a:\n  b: 1\n c: 2\n", "recipe.yaml:3:2: ", "the indentation fits none"),
        ("a: 1\nb\nc: 2\n", "recipe.yaml:2:1: ", "no `:` after this key"),
        ("a: *nobody", "recipe.yaml:1:4: a:", "names no anchor"),
        ("a: &x\n  b: *x", "recipe.yaml:2:6: a.b:", "stands inside what it names"),
        ("a: &x 1\nb: &x 2", "recipe.yaml:2:4: b:", "given twice"),
        ("a: 1\n---\nb: 2", "recipe.yaml:2:1: ", "a second document"),
        ("1: a", "recipe.yaml:1:1: ", "the key 1 is not text; write '1'"),
        ("a: {true: 1}", "recipe.yaml:1:5: a:", "the key true is not text"),
        ("[a]: 1", "recipe.yaml:1:1: ", "where a key is expected"),
        ("x: &d {a: 1}\ny:\n  <<: *d", "recipe.yaml:3:3: y:", "merge keys"),
        ("- a\n- b", "recipe.yaml:1:1: ", "a recipe is a mapping"),
        ("# nothing\n", "recipe.yaml:1:1: ", "the file is empty"),
        ("a: b\nc: \x07", "recipe.yaml:2:4: ", "U+0007 is not allowed"),
        ('a: "\\U99999999"', "recipe.yaml:1:", "names no character"),
        ('a: "\\U00110000"', "recipe.yaml:1:", "names no character"),
        ("a: " + "[" * 200, "recipe.yaml:1:", "nested deeper than 50 levels"),
        ("a: " + "x" * 300_000, "recipe.yaml:1:1: ", "larger than 262144"),
    ],
)
def test_refused_with_place_and_reason(text: str, start: str, words: str) -> None:
    message = failure(text)
    assert message.startswith(start)
    assert words in message.splitlines()[0]


def test_all_problems_at_once_and_syntax_first() -> None:
    lines = failure("a: 010\nb: !x 1\na: 2\nc: {d: 1, d: 2}\ne: [1\n").splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "recipe.yaml:5:4",
        "recipe.yaml:1:4",
        "recipe.yaml:2:4",
        "recipe.yaml:3:1",
        "recipe.yaml:4:11",
    ]


def test_aliases_are_copies_with_places() -> None:
    marked = read("one: &b\n  epochs: 20\ntwo: *b\n")
    assert marked.data == {"one": {"epochs": 20}, "two": {"epochs": 20}}
    assert marked.data["one"] is not marked.data["two"]
    assert str(marked.place(("two",))) == "recipe.yaml:3:1"
    assert str(marked.place(("two", "epochs"))) == "recipe.yaml:2:3"


@pytest.mark.parametrize("width", [2, 10])
def test_alias_bombs_are_refused(width: int) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, 40)]
    assert "aliases expand to more than" in failure("\n".join(lines))


def test_chain_of_aliases_is_not_deeper_than_the_limit() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 5000)]
    assert "nested deeper than" in failure("\n".join(lines))


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbfseed: 1\n")
    assert read_file(path).data == {"seed": 1}
    path.write_bytes("seed: 1\nnäme: x".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"recipe\.yaml:2:2: byte 0xe4 is not UTF-8"):
        read_file(path)
    with pytest.raises(RecipeError, match=r"no such file; did you mean recipe\.yaml"):
        read_file(tmp_path / "recipes.yaml")


def test_paths_of_a_list_that_became_terms_are_put_back() -> None:
    problem = Problem(("steps", 1, "objective", "terms", 0, "temprature"), "unknown; did you mean temperature?")
    error = locate([problem], read(RECIPE))
    assert str(error) == "recipe.yaml:13:10: steps[1].objective[0].temprature: unknown; did you mean temperature?"
    assert error.problems[0].path == ("steps", 1, "objective", 0, "temprature")


def test_follow_ups_are_left_out_and_causes_come_first() -> None:
    problems = [
        Problem(("seed",), "Input should be a valid integer (got 'x')"),
        Problem(("steps", 1, "objective", "terms", 0, "temperature"), "missing; give it a value"),
        Problem(("steps", 1, "budget"), "missing; give it a value"),
        Problem(("steps", 1, "objective", "terms", 0, "temprature"), "unknown; did you mean temperature?"),
        Problem(("models", "small", "width", "int"), "Input should be a valid integer"),
        Problem(("models", "small", "width", "int"), "Input should be a valid integer"),
    ]
    assert str(locate(problems, read(RECIPE))).splitlines() == [
        "recipe.yaml:13:10: steps[1].objective[0].temprature: unknown; did you mean temperature?",
        "recipe.yaml:8:5: steps[1].budget: missing; give it a value",
        "recipe.yaml:2:1: seed: Input should be a valid integer (got 'x')",
        "recipe.yaml:5:30: models.small.width: Input should be a valid integer",
    ]


def test_overrides() -> None:
    marked = override(
        read(RECIPE),
        [
            "seed=1",
            "data.path=/x y/z",
            "steps.student.budget.epochs=3",
            "steps[0].budget={steps: 10}",
            "steps.1.objective.kd.weight=1e-4",
            "steps.student.objective.1.weight={use: linear, start: 1, end: 0}",
            "models.small.width=null",
            "task.name=no",
        ],
    )
    data = marked.data
    assert data["seed"] == 1
    assert data["data"] == {"path": "/x y/z"}
    assert data["steps"][0]["budget"] == {"steps": 10}
    assert data["steps"][1]["budget"] == {"epochs": 3}
    assert data["steps"][1]["objective"][0]["weight"] == 1e-4
    assert data["steps"][1]["objective"][1]["weight"]["end"] == 0
    assert data["models"]["small"]["width"] is None
    assert data["task"]["name"] == "no"
    assert read(RECIPE).data["seed"] == 0
    where = "command line: steps[0].budget={steps: 10}"
    assert str(marked.place(("steps", 0, "budget", "steps"))) == where
    assert str(locate([Problem(("steps", 0, "budget", "steps"), "bad")], marked)).startswith(where)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps.studnt.budget.epochs=3", "steps.studnt: unknown; did you mean student?"),
        ("steps[7].name=x", r"steps[7]: there are 2 items"),
        ("seed.x=3", "seed: is 0 and holds no 'x'"),
        ("seed", "write key=value"),
        ("=3", "write key=value"),
        ("steps..x=3", "is no path"),
        (".seed=3", "is no path"),
        ("seed=010", "begins with 0"),
        ("seed=[1", "not closed"),
    ],
)
def test_wrong_overrides_are_named(text: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        override(read(RECIPE), [text])
    assert words in str(caught.value)
    assert text in str(caught.value)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
TRICKY = st.sampled_from(
    [
        "no",
        "null",
        "~",
        "1e5",
        "010",
        "<<",
        "-",
        "- a",
        "a: b",
        "# x",
        "x #y",
        "'",
        '"',
        "\\",
        "\t",
        " ",
        "a ",
        "!x",
        "&a",
    ]
    + ["*a", "?", "? a", "|", ">", "%", "@", "`", "{", "[", "]", ",", "a,b", "a\nb", "\r", "\x85", "\u2028", "\ufeff"]
    + ["---", "...", "=", ".inf", "0x1", "true", "1:30", "😀", "é", "\x00", "\x7f", "a" * 300, "key: [", "1_000"]
)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.text() | TRICKY, PLAIN | TRICKY | st.lists(st.dictionaries(TRICKY, TRICKY | PLAIN)), min_size=1)
)
def test_what_is_written_reads_back(data: dict[str, object]) -> None:
    again = read(dump(data)).data
    assert again == data
    assert repr(again) == repr(data)  # also the types, the signs of zeros and the order of keys


@settings(max_examples=150, deadline=None)
@given(st.text() | st.text(alphabet="a1:-[]{}&*!|>'\"%@#,?.~e \n\t"))
def test_any_text_is_read_or_refused_with_a_place(text: str) -> None:
    refused = None
    try:
        marked = read(text)
    except RecipeError as error:
        refused = error
    if refused is None:
        assert set(marked.places) >= {(key,) for key in marked.data}
    else:
        assert all(isinstance(each, Located) and each.place.line >= 1 for each in refused.problems)
        assert str(refused).startswith("recipe.yaml:")


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(st.text(alphabet="abc", min_size=1), st.integers(0, 99) | st.text(alphabet="xyz") | st.booleans())
)
def test_where_the_rules_agree_so_does_pyyaml(data: dict[str, object]) -> None:
    assert yaml.safe_load(dump(data)) == data


@pytest.mark.parametrize("value", [float("inf"), float("nan"), object(), b"x", {1: 2}, {"k" * 2000: 1}])
def test_what_cannot_be_read_is_not_written(value: object) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        dump({"a": value})
