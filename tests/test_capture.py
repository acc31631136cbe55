"""capture against values computed by hand; Batch."""

from collections import namedtuple

import pytest
import torch
from torch import Tensor, nn

from decoct.capture import Captured, capture, find_module, recorded, split_path
from decoct.errors import PathError
from decoct.outputs import Batch


class Shortcut(nn.Module):
    """A residual block that adds in place, as torchvision's do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x)
        out += x
        return self.relu(out)


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = self.a
        self.pair = Pair()

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(self.b(self.a(x)))[0]


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return x + 1, {"twice": 2 * x}


def test_features_are_what_modules_returned_also_where_they_are_changed_in_place() -> None:
    block, x = Shortcut(), torch.randn(4, 3)
    for _ in range(3):
        with capture(block, ["inner", "relu"]) as features:
            out = block(x)
        assert torch.equal(features["inner"], nn.functional.linear(x, block.inner.weight, block.inner.bias))
        assert torch.equal(features["relu"], out)
    features["inner"].sum().backward()
    assert block.inner.weight.grad is not None


def test_untouched_outputs_are_not_copied_again() -> None:
    model, x = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), torch.randn(3, 2)
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(output))
    for expected in (False, True):
        with capture(model, ["0"]) as features:
            model(x)
        assert (features["0"] is seen[-1]) is expected


def test_paths_of_calls_and_items() -> None:
    model, x = Several(), torch.randn(5, 2)
    with capture(model, ["a", "a#1", "pair[0]", "b#1", ""]) as features:
        out = model(x)
    assert torch.equal(features["a"], model.a(x))
    assert torch.equal(features["a#1"], model.a(model.a(x)))
    assert torch.equal(features["b#1"], features["a#1"])
    assert torch.equal(features["pair[0]"], out)
    assert torch.equal(features[""], out)
    assert set(features) == {"a", "a#1", "pair[0]", "b#1", ""}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a#2", "called 2 times"),
        ("pair", r"choose one with pair\[ITEM\]"),
        ("pair[7]", "no item 7 in tuple of 2"),
        ("pair[1]", "dict with twice, no tensor"),
        ("b", "a shared module, called 2 times"),
    ],
)
def test_features_that_are_not_there_are_refused_when_read(path: str, message: str) -> None:
    model = Several()
    with capture(model, [path]) as features:
        model(torch.randn(1, 2))
    with pytest.raises(PathError, match=message):
        features[path]


def test_what_went_into_a_module_also_where_it_works_in_place() -> None:
    block, x = Shortcut(), torch.randn(4, 3)
    for _ in range(3):
        with capture(block, ["relu@input", "relu", "inner@input"]) as features:
            block(x)
        assert torch.equal(features["relu@input"], block.inner(x) + x)
        assert torch.equal(features["relu"], torch.relu(features["relu@input"]))
        assert torch.equal(features["inner@input"], x)
    twice = Several()
    with capture(twice, ["a#1@input"]) as features:
        twice(torch.ones(1, 2))
    assert torch.equal(features["a#1@input"], twice.a(torch.ones(1, 2)))
    with capture(block, ["relu@input[3]"]) as features:
        block(x)
    with pytest.raises(PathError, match="no item 3"):
        features["relu@input[3]"]
    assert not any(module._forward_pre_hooks for module in block.modules())


def test_parameters_are_parts_of_a_path() -> None:
    block = Shortcut()
    with capture(block, ["inner@weight", "inner@bias", "relu@weight"]) as features:
        block(torch.ones(1, 3))
    assert features["inner@weight"] is block.inner.weight
    assert features["inner@bias"] is block.inner.bias
    with pytest.raises(PathError, match=r"'relu@weight': it has the parameters none"):
        features["relu@weight"]


def test_every_layer_that_is_called_once_in_the_order_in_which_they_finish() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), nn.Linear(3, 3), Pair())
    with capture(model, ["*"]) as features:
        model(torch.ones(1, 2))
    assert list(features) == ["0.0", "0.1", "0", "1", "2[0]"]
    assert len(features) == 5
    assert features["2[0]"].shape == (1, 3)
    shared = Several()
    with capture(shared, ["*"]) as features:
        shared(torch.ones(1, 2))
    assert list(features) == ["pair[0]"]


def test_wrong_paths_name_the_nearest_and_leave_no_hooks() -> None:
    model = nn.Sequential(nn.Linear(1, 1), Shortcut())
    with pytest.raises(PathError, match=r"no module '1.iner'; did you mean 1.inner"), capture(model, ["0", "1.iner"]):
        pass
    with pytest.raises(PathError, match="feature path"):
        split_path("a[0]#1")
    with pytest.raises(PathError):
        find_module(model, "1.inner.weight")
    with pytest.raises(ZeroDivisionError), capture(model, ["0"]):
        raise ZeroDivisionError
    assert not any(module._forward_hooks for module in model.modules())


def test_two_captures_of_one_model_do_not_meet() -> None:
    model, x, y = nn.Sequential(nn.Linear(2, 2)), torch.randn(1, 2), torch.randn(1, 2)
    with capture(model, ["0"]) as outer:
        model(x)
        with capture(model, ["0"]) as inner:
            model(y)
    assert isinstance(inner, Captured)
    assert torch.equal(inner["0"], model[0](y))
    assert torch.equal(outer["0"], model[0](x))


def test_batch_counts_samples_and_keeps_shared_inputs_shared() -> None:
    x = torch.zeros(4, 2)
    point = namedtuple("point", "x y")
    assert len(Batch({"student": x})) == 4
    assert len(Batch({"student": {"ids": x}})) == 4
    assert len(Batch({"student": (x, x)})) == 4
    assert len(Batch({"student": [x, x, x]})) == 3
    moved = Batch({"student": x, "teacher": x, "also": point(x, [x])}).to("meta")
    assert moved.side("student") is moved.side("teacher")
    assert isinstance(moved.side("also"), point)
    assert moved.side("also").x.device.type == "meta"
    with pytest.raises(KeyError, match="did you mean student"):
        moved.side("studnt")


def test_what_an_eval_pass_left_alone_may_change_in_training() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool1d(4), nn.Dropout(0.5, inplace=True), nn.Linear(4, 2)).eval()
    x = torch.randn(3, 8)
    for training in (False, True, True, False):
        model.train(training)
        with capture(model, ["0", "1@input"]) as found:
            model(x)
        torch.testing.assert_close(found["0"], nn.functional.adaptive_avg_pool1d(x, 4))
        torch.testing.assert_close(found["1@input"], nn.functional.adaptive_avg_pool1d(x, 4))


@pytest.mark.parametrize("collect", [capture, recorded])
def test_no_hook_stays_after_an_error_in_the_body_or_a_path_that_is_wrong(collect) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())

    def hooks() -> int:
        return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())

    def failing() -> None:
        with collect(model, ["0", "1", "1@input"] if collect is capture else ["0", "1"]):
            assert hooks() > 0
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert hooks() == 0
    with pytest.raises(PathError), collect(model, ["0", "nope"]):
        pass
    assert hooks() == 0
