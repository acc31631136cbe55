"""Batches and outputs are walked by one rule: what is moved, what is taken, what is shared, what goes."""

import dataclasses
from collections import namedtuple
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from decoct.data.parts import Padding, padding
from decoct.errors import DataError
from decoct.outputs import Batch, Dense, Factored, Head, Outputs, TopK, content_of, device_of, leaves, samples_of
from decoct.steps.shipping.export import head

N = 5
Pair = namedtuple("Pair", ["ids", "rest"])


@dataclass(frozen=True)
class Boxes:
    """A dataclass of a user's."""

    corners: Any
    image: int = 3


def column(number: int) -> Tensor:
    """A value for each sample, no two of one number alike."""
    return torch.arange(N) * 100 + number


LEAVES = st.one_of(
    st.integers(0, 99).map(column),
    st.integers(0, 99).map(lambda n: column(n).reshape(N, 1, 1).expand(N, 2, 3)),
    st.integers(0, 99).map(lambda n: column(n).numpy()),
    st.integers(0, 99).map(lambda n: column(n).tolist()),
    st.integers(0, 99).map(lambda n: [{"box": torch.full((i, 4), float(n + i))} for i in range(N)]),
)
REST = st.sampled_from([None, True, 3, 0.5, "text", torch.tensor(7.0), np.float64(2.0)])


def nests(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Bundles of a value that has samples with any others."""
    other = st.one_of(inner, REST)
    return st.one_of(
        st.tuples(inner, other).map(lambda both: {"a": both[0], "b": both[1]}),
        st.tuples(other, inner),
        st.tuples(inner, other).map(lambda both: Pair(*both)),
        inner.map(Boxes),
    )


NESTED = st.recursive(LEAVES, nests, max_leaves=6)
PLACES = st.lists(st.integers(0, N - 1), min_size=1, max_size=7)


def picked(value: Any, places: list[int]) -> Any:
    """What `take` should give, said in another way."""
    if isinstance(value, Mapping):
        return {name: picked(each, places) for name, each in value.items()}
    if isinstance(value, Pair):
        return Pair(*(picked(each, places) for each in value))
    if isinstance(value, Boxes):
        return Boxes(picked(value.corners, places), value.image)
    if isinstance(value, tuple):
        return tuple(picked(each, places) for each in value)
    if isinstance(value, list):
        return [value[i] for i in places]
    if isinstance(value, Tensor | np.ndarray) and value.ndim:
        rows = [value[i] for i in places]
        return torch.stack(rows) if isinstance(value, Tensor) else np.stack(rows)
    return value


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Boxes):
        return same(dataclasses.astuple(a), dataclasses.astuple(b))
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else bool(a == b)


@given(NESTED, NESTED, PLACES)
def test_take_picks_the_samples_of_everything_nested(inputs: Any, target: Any, places: list[int]) -> None:
    batch = Batch({"student": inputs, "teacher": (inputs, inputs)}, target, keys=np.arange(N, dtype=np.uint64))
    assert len(batch) == samples_of(inputs) == N
    for indices in (torch.tensor(places), np.array(places)):
        found = batch.take(indices)
        assert len(found) == len(places)
        assert same(found.side("student"), picked(inputs, places))
        assert same(found.target, picked(target, places))
        assert found.keys.tolist() == places
        assert found.side("teacher")[0] is found.side("teacher")[1] is found.side("student")
    assert same(batch.take(slice(1, 4)).target, picked(target, [1, 2, 3]))
    assert same(head(batch, 2).side("student"), picked(inputs, [0, 1]))


@given(NESTED, st.integers(1, 4))
def test_what_has_another_number_of_entries_is_refused_by_name(inputs: Any, other: int) -> None:
    for wrong in (torch.zeros(other, 2), np.zeros(other), list(range(other)), {"boxes": (torch.zeros(other),)}):
        with pytest.raises(DataError, match=rf"target.* of a batch has {other} entries and the batch {N} samples"):
            Batch({"student": inputs}, wrong).take(slice(0, 1))


@given(NESTED)
def test_map_changes_all_tensors_and_arrays_and_nothing_else(inputs: Any) -> None:
    beside = Batch({"student": inputs}, inputs)
    batch = Batch({"student": inputs, "teacher": inputs}, inputs, also={"held_out": beside}, views=(beside,))
    found = batch.map(lambda each: each + 1)
    assert [each.tolist() for each in leaves(found.side("student"))] == [(each + 1).tolist() for each in leaves(inputs)]
    assert same(found.map(lambda each: each - 1).target, inputs)
    assert found.side("student") is found.side("teacher") is found.target
    assert found.also["held_out"].target is found.views[0].target is found.target


def test_a_list_of_inputs_is_taken_with_its_targets() -> None:
    found = Batch({"student": [0, 1, 2, 3]}, torch.arange(4)).take(torch.tensor([1, 3]))
    assert found.side("student") == [1, 3]
    assert found.target.tolist() == [1, 3]


def test_the_head_of_a_batch_cuts_tuples() -> None:
    found = head(Batch({"student": (torch.zeros(4, 2), torch.ones(4))}, torch.arange(4)), 3)
    assert [len(each) for each in found.side("student")] == [3, 3]
    assert len(found) == 3


def test_what_holds_no_entry_for_any_sample_is_no_batch() -> None:
    with pytest.raises(DataError, match="inputs of type dict that hold no entry for any sample"):
        len(Batch({"student": {"scale": torch.tensor(1.0)}}))


def test_device_of_nested_values() -> None:
    assert device_of({"a": [], "b": ("text", torch.ones(1, device="meta"))}).type == "meta"
    assert device_of((np.ones(2), None)).type == "cpu"


class Trace(NamedTuple):
    """How places of an input answer to places of the sample."""

    places: Tensor | None = None
    matrix: Tensor | None = None


def test_every_field_of_a_batch_is_mapped_and_taken() -> None:
    fields = {
        "target": column(1),
        "labelled": column(0) > 150,
        "keys": column(2),
        "view": column(3),
        "seen": column(4),
        "trace": {"student": Trace(column(5))},
        "group": column(6),
    }
    batch = Batch({"student": column(0)}, **fields, views=(Batch({"student": column(7)}),), tickets={"teacher": 1})
    assert {each.name for each in dataclasses.fields(Batch)} == {"inputs", "also", "views", "tickets", *fields}
    found = batch.take(torch.tensor([3, 1]))
    moved = batch.to("meta")
    for name in fields:
        before, after = next(leaves(getattr(batch, name))), next(leaves(getattr(found, name)))
        assert after.tolist() == before[torch.tensor([3, 1])].tolist()
        assert device_of(getattr(moved, name)).type == "meta"
    assert found.views[0].side("student").tolist() == [307, 107]
    assert moved.views[0].side("student").device.type == "meta"
    assert found.trace["student"].matrix is None
    assert found.tickets == {}
    assert moved.tickets == {"teacher": 1}


class TestRegenerated:
    """Other content in the place of a batch."""

    def batch(self) -> Batch:
        x = column(0)
        return Batch(
            {"student": x, "teacher": x},
            column(1),
            x > 150,
            content_of(x),
            2,
            {"held_out": Batch({"student": x})},
            (Batch({"student": x}),),
            content_of(x),
            {"teacher": "an answer"},
            {"student": Trace(x)},
            content_of(x),
        )

    def test_what_is_of_the_old_samples_goes_and_keys_are_anew(self) -> None:
        found = self.batch().regenerated({"student": column(9), "teacher": column(9)}, column(5))
        assert found.keys.tolist() == content_of(column(9)).tolist() != self.batch().keys.tolist()
        assert found.target.tolist() == column(5).tolist()
        assert (found.seen, found.views, found.tickets, found.trace, found.group) == (None, (), {}, {}, None)
        assert found.labelled is None
        assert found.view == 2
        assert "held_out" in found.also
        assert set(self.batch().regenerated({"student": column(9)}).inputs) == {"student"}

    def test_a_stand_in_for_no_sample_stays_one(self) -> None:
        assert isinstance(padding(self.batch()).regenerated({"student": column(9)}), Padding)
        assert isinstance(padding(self.batch()).altered({"student": column(9)}), Padding)

    def test_altered_samples_keep_whose_they_are_and_no_answers(self) -> None:
        before = self.batch()
        found = before.altered({"student": column(9)})
        assert found.side("student").tolist() == column(9).tolist()
        assert found.side("teacher") is before.side("teacher")
        for name in ("keys", "target", "labelled", "group", "trace", "also"):
            assert getattr(found, name) is getattr(before, name)
        assert (found.seen, found.views, found.tickets) == (None, (), {})


class TestContent:
    """Keys from what a sample holds."""

    def test_of_bundles_by_sample(self) -> None:
        ids, x = torch.arange(6).reshape(3, 2), torch.randn(3, 4)
        bundle = {"ids": ids, "more": (x, {"texts": ["a", "bb", "c"]}), "scale": torch.tensor(2.0)}
        found = content_of(bundle)
        assert len(set(found.tolist())) == 3
        for i in range(3):
            alone = {"ids": ids[i : i + 1], "more": (x[i : i + 1], {"texts": [bundle["more"][1]["texts"][i]]})}
            assert content_of(alone)[0] == found[i]
        assert content_of({**bundle, "more": (x + 1, bundle["more"][1])})[0] != found[0]
        assert content_of((ids, x)).tolist() != content_of((ids, x + 1)).tolist()

    def test_of_a_list_of_bundles(self) -> None:
        samples = [{"image": torch.full((2,), float(i))} for i in (1, 2, 1)]
        found = content_of(samples).tolist()
        assert found[0] == found[2] != found[1]


class TestOutputs:
    """What a model said."""

    def outputs(self) -> Outputs:
        hidden = torch.arange(4.0).reshape(4, 1)
        weight = torch.arange(4.0).reshape(4, 1)
        return Outputs(
            Factored(hidden, Head(weight, torch.arange(4.0))),
            mask=torch.tensor([True, False, True, False]),
            values={"boxes": hidden},
            features={
                "pooled": hidden,
                "rows": torch.arange(4.0) * 10,
                "regions": torch.zeros(9, 2),
                "norm@weight": torch.arange(4.0),
                "scale": torch.tensor(1.0),
            },
            losses={"boxes": torch.tensor(1.0)},
            heads={"kind": Outputs(Dense(hidden), features={"rows": hidden}, apart=frozenset({"rows"}))},
            apart=frozenset({"rows"}),
        )

    def test_take_leaves_out_what_is_no_sample_s(self) -> None:
        found = self.outputs().take(torch.tensor([2, 0]), 4)
        assert set(found.features) == {"pooled", "norm@weight"}
        assert found.features["pooled"].flatten().tolist() == [2.0, 0.0]
        assert found.features["norm@weight"].tolist() == [0.0, 1.0, 2.0, 3.0]
        assert found.heads["kind"].features == {}
        assert found.losses == {}
        assert found.mask.tolist() == [True, True]
        assert found.values["boxes"] is found.features["pooled"]

    def test_the_weights_of_a_head_are_moved_and_never_taken(self) -> None:
        outputs = self.outputs()
        found, moved = outputs.take(torch.tensor([2, 0]), 4), outputs.to("meta")
        assert found.distribution.hidden.flatten().tolist() == [2.0, 0.0]
        assert found.distribution.head.weight is outputs.distribution.head.weight
        assert found.distribution.head.bias is outputs.distribution.head.bias
        assert {each.device.type for each in leaves(moved)} == {"meta"}
        assert torch.equal(found.logits, outputs.logits[[2, 0]])

    def test_what_is_shared_stays_shared(self) -> None:
        outputs = self.outputs()
        tied = replace(outputs, features={**outputs.features, "embedding@weight": outputs.distribution.head.weight})
        changed = tied.map(lambda each: each + 1)
        assert changed.features["embedding@weight"] is changed.distribution.head.weight
        assert changed.distribution.hidden is changed.features["pooled"] is changed.heads["kind"].logits

    def test_places(self) -> None:
        logits = torch.randn(2, 3, 5)
        top = TopK.of(logits, 2)
        factored = Factored(torch.zeros(2, 3, 7), Head(torch.zeros(5, 7)))
        assert Outputs(logits).places == Outputs(top).places == Outputs(factored).places == (2, 3)
        assert Outputs().places is None
        assert "logits" not in Outputs(factored).__dict__
        assert Outputs(top).take(slice(0, 1), 2).top.ids.shape == (1, 3, 2)

    def test_logits_of_another_number_are_refused(self) -> None:
        with pytest.raises(DataError, match="logits of a batch has 3 entries and the batch 4 samples"):
            Outputs(torch.zeros(3, 2)).take(slice(0, 1), 4)
