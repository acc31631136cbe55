"""Parity of several outputs, each by its kind: logits, numbers, ids."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from decoct.models.interface import MAIN, Port, Program
from decoct.quantization.sensitivity import sqnr_db
from decoct.spec import Choice
from decoct.steps.shipping.parity import against_float, compare
from decoct.targets.base import Session

AXES = {"features": {0: "batch"}}
PORTS = {
    "logits": Port(kind="logits", shape=(3,)),
    "values": Port(kind="numbers", shape=(2,)),
    "best": Port(kind="ids"),
}
FEEDS = [
    {"features": np.random.default_rng(seed).normal(size=(size, 4)).astype(np.float32)}
    for seed, size in enumerate((5, 8, 6))
]
SAMPLES = 19


class Answers(nn.Module):
    """Three answers at once: scores of classes, two numbers far from 1 in scale, and an id of each sample."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.other = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.head(features)
        return logits, 1e4 * self.other(features) + 3e5, logits.argmax(-1)


PROGRAM = Answers().eval()


def told(change: Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]]) -> Session:
    """A file that says what the program says, changed."""

    def session(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            parts = PROGRAM(torch.from_numpy(feed["features"]))
        return dict(change({name: part.numpy().copy() for name, part in zip(PORTS, parts)}))

    return session


def said(name: str, *, again: bool) -> np.ndarray:
    """What the program says of all samples, and of the first alone once more."""
    rows = [feed["features"] for feed in FEEDS] + ([FEEDS[0]["features"][:1]] if again else [])
    with torch.no_grad():
        return PROGRAM(torch.from_numpy(np.concatenate(rows)))[list(PORTS).index(name)].double().numpy()


@pytest.mark.parametrize("use", ["onnx", "openvino", "torch_export"])
def test_a_file_of_several_outputs_says_what_torch_says(use: str, tmp_path: Path) -> None:
    if use == "openvino":
        pytest.importorskip("openvino")
    target = Choice("decoct.targets").validate({"use": use})
    program = Program(PROGRAM, {"features": torch.zeros(2, 4)}, AXES, PORTS)
    session = target.load(target.write({MAIN: program}, tmp_path)[MAIN])
    assert set(session(FEEDS[0])) == set(PORTS)
    parity = compare(PROGRAM, session, FEEDS, PORTS)
    assert parity.max_abs_diff < 1e-5
    assert (parity.agreement, parity.samples) == (1.0, SAMPLES)
    for name, port in PORTS.items():
        alone = compare(OneOf(name), lambda feed, name=name: {name: session(feed)[name]}, FEEDS, {name: port})
        assert alone.max_abs_diff <= parity.max_abs_diff
        assert alone.agreement == 1.0


class OneOf(nn.Module):
    """One of the answers."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.place = list(PORTS).index(name)

    def forward(self, features: Tensor) -> Tensor:
        return PROGRAM(features)[self.place]


def test_logits_differ_as_they_are_and_agree_by_the_largest() -> None:
    moved = compare(PROGRAM, told(lambda each: {**each, "logits": each["logits"] + np.float32(0.25)}), FEEDS, PORTS)
    assert moved.max_abs_diff == pytest.approx(0.25, rel=1e-5)
    assert (moved.agreement, moved.scale) == (1.0, 1.0)
    turned = compare(PROGRAM, told(lambda each: {**each, "logits": each["logits"][:, ::-1].copy()}), FEEDS, PORTS)
    found = said("logits", again=True)
    assert turned.agreement == pytest.approx((found.argmax(1) == found[:, ::-1].argmax(1)).mean())
    assert turned.max_abs_diff == pytest.approx(np.abs(found - found[:, ::-1]).max(), rel=1e-5)


def test_numbers_differ_by_their_spread() -> None:
    spread = said("values", again=True).std()
    parity = compare(PROGRAM, told(lambda each: {**each, "values": each["values"] + np.float32(500)}), FEEDS, PORTS)
    assert parity.max_abs_diff == pytest.approx(500 / spread, rel=1e-3)
    assert parity.scale == pytest.approx(spread, rel=1e-6)
    assert parity.agreement == 0.0
    near = compare(PROGRAM, told(lambda each: {**each, "values": each["values"] + np.float32(2)}), FEEDS, PORTS)
    assert near.agreement == 1.0


def one_wrong(each: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The id of the last sample of batches of eight is another."""
    if len(each["best"]) == 8:
        each["best"][-1] = (each["best"][-1] + 1) % 3
    return each


def test_ids_agree_or_do_not() -> None:
    parity = compare(PROGRAM, told(one_wrong), FEEDS, PORTS)
    assert parity.agreement == pytest.approx(SAMPLES / (SAMPLES + 1))
    assert parity.max_abs_diff in (1.0, 2.0)
    assert parity.scale == 1.0


def test_a_file_in_integers_is_told_by_its_noisiest_output() -> None:
    ids = against_float(PROGRAM, told(one_wrong), FEEDS, PORTS)
    assert ids["agreement"] == pytest.approx(1 - 1 / SAMPLES)
    assert ids["samples"] == SAMPLES
    assert "scale" not in ids
    values = against_float(
        PROGRAM,
        told(lambda each: {**each, "values": each["values"] * np.float32(1.5), "logits": each["logits"] + 1e-3}),
        FEEDS,
        PORTS,
    )
    found = said("values", again=False)
    assert values["sqnr_db"] == pytest.approx(sqnr_db(1.5 * found, found), rel=1e-4)
    assert values["scale"] == pytest.approx(found.std(), rel=1e-6)


def test_ids_that_are_near_are_still_other_ids() -> None:
    ports = {"ids": Port(kind="ids")}
    many = np.arange(1000)

    def session(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"ids": many + 1}

    class Counting(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return torch.arange(1000)

    assert against_float(Counting(), session, FEEDS[:1], ports)["agreement"] == 0.0
    assert compare(Counting(), session, FEEDS[:1], ports).agreement == 0.0


def test_numbers_of_one_axis_are_a_row_of_each_sample() -> None:
    class Length(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return features.norm(dim=-1)

    def session(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = np.linalg.norm(feed["features"], axis=-1)
        found[:1] += 1.0
        return {"length": found}

    ports = {"length": Port(kind="numbers")}
    assert compare(Length(), session, FEEDS, ports).agreement == pytest.approx(1 - 4 / 20)
    assert against_float(Length(), session, FEEDS, ports)["agreement"] == pytest.approx(1 - 3 / 19)


def test_positions_of_batches_of_other_lengths_are_rows() -> None:
    feeds = [{"features": np.ones((2, length, 4), np.float32) * length} for length in (3, 5)]

    class Tags(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return features.cumsum(-1)

    def session(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = feed["features"].cumsum(-1)
        found[0, 0] *= -1
        return {"logits": found}

    parity = compare(Tags(), session, feeds, {"logits": Port(kind="logits", shape=(None, 4))})
    assert parity.samples == 4
    assert parity.agreement == pytest.approx(1 - 3 / 19)
    assert parity.max_abs_diff == 40.0
