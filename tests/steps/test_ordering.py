"""Orders of steps that cannot work are refused before anything runs, each with its reason."""

import pytest

from decoct.errors import RecipeError
from decoct.recipe.recipe import Recipe

CUT = {"use": "prune", "name": "cut", "scheme": {"use": "channels", "ratio": 0.5}}
MASKED = {"use": "prune", "name": "masked", "scheme": {"use": "magnitude", "ratio": 0.5}}
REWRITTEN = {"use": "rewrite", "name": "thin", "scheme": {"use": "low_rank"}}
LEARN = {"use": "distill", "name": "again", "inputs": {"teacher": "net"}}


def parsed(*steps):
    first = {"use": "train", "name": "trained", "inputs": {"model": "net"}}
    return Recipe.parse(
        {
            "task": {"use": "image_classification"},
            "data": {"use": "digits"},
            "models": {"net": {"use": "small_resnet", "width": 8}},
            "steps": [first, *steps],
        }
    )


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (
            [{**CUT, "recover": {"use": "none"}}, {"use": "quantize", "name": "q"}],
            "'cut' was cut and has not recovered",
        ),
        (
            [{**REWRITTEN, "recover": {"use": "none"}}, {"use": "quantize", "name": "q"}],
            "'thin' was rewritten and has not recovered.*give the rewrite step a recovery",
        ),
        (
            [MASKED, {"use": "share", "name": "tied", "scheme": {"use": "layers"}}],
            "'masked' set weights to zero, and share trains them back",
        ),
        ([MASKED, LEARN], "'masked' set weights to zero, and distill trains them back"),
        ([MASKED, {"use": "qat", "name": "q"}], "'masked' set weights to zero, and qat trains them back"),
        ([{"use": "qat", "name": "q"}, CUT], "put prune before qat"),
        (
            [{"use": "share", "name": "book", "scheme": {"use": "codebook"}}, CUT],
            "'book' keeps its weights as indices into a codebook",
        ),
        ([{"use": "quantize", "name": "q"}, CUT], "'q' is of kind exported"),
        ([{"use": "quantize", "name": "q"}, {"use": "quantize", "name": "r"}], "'q' writes a file in integers already"),
        (
            [{"use": "qat", "name": "a"}, LEARN, {"use": "export", "name": "e"}, {"use": "quantize", "name": "q"}],
            "'e' writes a file in integers already",
        ),
        (
            [{"use": "share", "name": "s", "scheme": {"use": "codebook"}, "recover": {"use": "joint"}}],
            "while the network",
        ),
        ([{"use": "rewrite", "name": "s", "scheme": {"use": "low_rank"}, "recover": {"use": "sparsify"}}], "while the"),
        ([{"use": "qat", "name": "s", "recover": {"use": "iterative"}}], "works once; use recover: after"),
    ],
)
def test_what_cannot_work_is_refused(steps, reason):
    with pytest.raises(RecipeError, match=reason) as caught:
        parsed(*steps)
    assert "steps[" in str(caught.value)


@pytest.mark.parametrize(
    "steps",
    [
        [CUT, {"use": "quantize", "name": "q"}],
        [{**CUT, "recover": {"use": "none"}}, LEARN, {"use": "quantize", "name": "q"}],
        [MASKED, {"use": "quantize", "name": "q"}],
        [{"use": "export", "name": "e"}, {"use": "quantize", "name": "q"}],
        [{"use": "qat", "name": "a"}, {"use": "quantize", "name": "q"}],
        [{**CUT, "recover": {"use": "joint"}}],
        [{**MASKED, "recover": {"use": "iterative"}}],
        [CUT, {"use": "qat", "name": "q"}, {"use": "export", "name": "e"}],
        [CUT, MASKED],
        [MASKED, {"use": "share", "name": "book", "scheme": {"use": "codebook"}}],
        [REWRITTEN, {"use": "quantize", "name": "q"}],
    ],
)
def test_what_works_is_taken(steps):
    assert len(parsed(*steps).steps) == 1 + len(steps)
