"""Layouts: everything that a teacher may say comes back, whole or padded with its mask."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from store_toy import seen_of

from decoct.errors import DataError
from decoct.outputs import Outputs, TopK
from decoct.store.codecs.dense import DenseCodec
from decoct.store.codecs.top_k import TopKCodec
from decoct.store.layout import Layout, Rows
from decoct.store.shards import described, map_shard, shard_name, write_shard


def back(outputs: Outputs, codec: DenseCodec | TopKCodec | None = None, length: int | None = None) -> Outputs:
    """Encoded in two batches, joined, through plain data and decoded."""
    layout = Layout.of(outputs, codec)
    rows = layout.encode(outputs, seen=seen_of(range(count(outputs))), keys=1)
    parsed = Layout.parse(json.loads(json.dumps(layout.plain())))
    assert parsed == layout
    return parsed.decode(rows.cells, length)


def count(outputs: Outputs) -> int:
    tensors = [outputs.logits, *outputs.values.values(), *outputs.features.values()]
    return next(len(each) for each in [*tensors, outputs.top] if each is not None)


def ragged_mask(seed: int, samples: int, length: int) -> torch.Tensor:
    """Any mask, holes and left padding too."""
    return torch.rand(samples, length, generator=torch.Generator().manual_seed(seed)) < 0.5


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool],
)
def test_values_and_features_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    values = {"embedding": (torch.randn(4, 6) * 50).to(dtype), "score": (torch.randn(4) * 9).to(dtype)}
    features = {"layer.1[0]": (torch.randn(4, 2, 3, 5) * 9).to(dtype)}
    found = back(Outputs(values=values, features=features))
    for given_part, found_part in ((values, found.values), (features, found.features)):
        assert set(given_part) == set(found_part)
        for name, value in given_part.items():
            assert found_part[name].dtype == dtype
            assert torch.equal(found_part[name], value)
    assert found.logits is None


def test_regression_is_exact() -> None:
    predictions = torch.randn(5, 2) * 1e6
    found = back(Outputs(predictions))
    assert found.logits is not None
    assert torch.equal(found.logits, predictions)


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_sequences_are_kept_without_padding(seed: int, samples: int, length: int) -> None:
    mask = ragged_mask(seed, samples, length)
    logits = torch.randn(samples, length, 5)
    hidden = torch.randn(samples, length, 3)
    outputs = Outputs(logits, mask=mask, features={"hidden": hidden, "pooled": hidden[:, 0]})
    found = back(outputs, length=length)
    assert found.mask is not None
    assert found.logits is not None
    assert torch.equal(found.mask, mask)
    assert torch.equal(found.logits, logits * mask[..., None])
    assert torch.equal(found.features["hidden"], hidden * mask[..., None])
    assert torch.equal(found.features["pooled"], hidden[:, 0])
    layout = Layout.of(outputs)
    rows = layout.encode(outputs, seen=seen_of(range(samples)), keys=0)
    content = rows.cells["logits.values"].content  # type: ignore[union-attr]
    assert content.size == 20 * int(mask.sum())


@pytest.mark.parametrize("tail", ["bucket", "uniform", "sample"])
def test_sequences_of_top_k(tail: str) -> None:
    """Each position as if it stood alone; padding is a whole uniform distribution."""
    mask = torch.tensor([[True, True, False], [False, True, False]])
    logits = torch.randn(2, 3, 40)
    codec = TopKCodec(4, tail=tail, dtype="float32")  # type: ignore[arg-type]
    found = back(Outputs(logits, mask=mask), codec)
    assert found.mask is not None
    assert found.mask.tolist() == [[True, True], [False, True]]
    if tail == "uniform":
        assert found.logits is not None
        assert found.logits.shape == (2, 2, 40)
        return
    assert found.top is not None
    expected = logits.log_softmax(-1).topk(4, dim=-1)
    for sample, place in ((0, 0), (0, 1), (1, 1)):
        torch.testing.assert_close(found.top.log_probs[sample, place], expected.values[sample, place])
        assert torch.equal(found.top.ids[sample, place], expected.indices[sample, place])
    torch.testing.assert_close(found.top.spread()[1, 0], torch.full((40,), 1 / 40).log())
    assert found.top.rest.shape == (2, 2, 3)
    if found.top.drawn is not None:
        assert not torch.equal(found.top.drawn[0, 0], found.top.drawn[0, 1])
        assert set(found.top.drawn[1, 0].tolist()) <= set(range(40)) - set(found.top.ids[1, 0].tolist())
    with pytest.raises(DataError, match="2 positions of a sample that has 1 here"):
        back(Outputs(logits, mask=mask), codec, length=1)


def test_dense_maps() -> None:
    logits = torch.randn(3, 4, 5, 6)
    found = back(Outputs(logits, mask=torch.rand(3, 4, 5) < 0.5))
    assert found.logits is not None
    assert torch.equal(found.logits, logits)
    half = back(Outputs(logits), DenseCodec())
    assert half.logits is not None
    torch.testing.assert_close(half.logits, logits, rtol=1e-3, atol=1e-2)
    top = back(Outputs(logits), TopKCodec(2)).top
    assert top is not None
    assert torch.equal(top.ids, logits.topk(2, dim=-1).indices)


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(0, 6))
@settings(max_examples=40, deadline=None)
def test_boxes(seed: int, samples: int, boxes: int) -> None:
    mask = ragged_mask(seed, samples, boxes)
    values = {"boxes": torch.randn(samples, boxes, 4), "boxes.mask": mask}
    found = back(Outputs(values=values)).values
    length = found["boxes.mask"].shape[1]
    assert length <= boxes
    assert torch.equal(found["boxes.mask"], mask[:, :length])
    assert not mask[:, length:].any()
    assert torch.equal(found["boxes"], (values["boxes"] * mask[..., None])[:, :length])


def test_a_teacher_that_gives_top_k_alone() -> None:
    top = TopK.of(torch.randn(3, 20), 4, temperatures=(1.0, 2.0, 4.0))
    found = back(Outputs(top), TopKCodec(4, dtype="float32")).top
    assert found is not None
    assert torch.equal(found.log_probs, top.log_probs)
    assert torch.equal(found.rest, top.rest)
    with pytest.raises(DataError, match="codec keeps"):
        back(Outputs(top), TopKCodec(5))
    for codec in (DenseCodec(), TopKCodec(4, tail="uniform")):
        with pytest.raises(DataError, match="alone"):
            back(Outputs(top), codec)


def test_refusals() -> None:
    layout = Layout.of(Outputs(torch.zeros(2, 3), features={"a": torch.zeros(2, 4)}))
    with pytest.raises(DataError, match=r"features\.a was float32 \[4\] and is float32 \[5\]"):
        layout.encode(Outputs(torch.zeros(2, 3), features={"a": torch.zeros(2, 5)}), seen=[1, 2], keys=[1, 2])
    with pytest.raises(DataError, match="is absent"):
        layout.encode(Outputs(torch.zeros(2, 3)), seen=[1, 2], keys=[1, 2])
    with pytest.raises(DataError, match="nothing"):
        Layout.of(Outputs())
    with pytest.raises(DataError, match="heads"):
        Layout.of(Outputs(heads={"a": Outputs(torch.zeros(1, 2))}))
    with pytest.raises(DataError, match="complex64"):
        Layout.of(Outputs(values={"spectrum": torch.zeros(1, 2, dtype=torch.complex64)}))
    wrong = Outputs(values={"boxes": torch.zeros(2, 3, 4), "boxes.mask": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(DataError, match="its mask"):
        Layout.of(wrong).encode(wrong, seen=[1, 2], keys=[1, 2])


def test_joined_batches_and_equal_rows(tmp_path: Path) -> None:
    """Batches of unlike lengths make one shard; of rows that look alike the first is written; a shard reads alone."""
    parts, full = [], []
    layout = None
    for length in (3, 5, 1):
        outputs = Outputs(torch.randn(2, length, 4), mask=ragged_mask(length, 2, length))
        layout = layout or Layout.of(outputs)
        parts.append(layout.encode(outputs, seen=[length, length + 10], keys=[length, 7], views=[0, 1]))
        full.append(outputs)
    assert layout is not None
    shard = write_shard(tmp_path / shard_name(3), [*parts, parts[0]], layout)
    assert shard.rows == 6
    assert shard.number == 3
    alone, measured = described(tmp_path / shard.file)
    assert alone == layout
    assert measured["rows"] == sum(int(o.mask.sum()) for o in [*full, full[0]] if o.mask is not None)
    mapped = map_shard(tmp_path / shard.file, alone, expected=shard.sha256)
    assert mapped.seen.tolist() == [3, 13, 5, 15, 1, 11]
    assert mapped.keys.tolist() == [3, 7, 5, 7, 1, 7]
    assert mapped.views.tolist() == [0, 1] * 3
    found = layout.decode(mapped.cells, length=5)
    assert found.logits is not None
    for index, outputs in enumerate(full):
        assert outputs.logits is not None
        assert outputs.mask is not None
        got = found.logits[2 * index : 2 * index + 2, : outputs.logits.shape[1]]
        assert torch.equal(got, outputs.logits * outputs.mask[..., None])
    with pytest.raises(DataError, match="no rows"):
        write_shard(tmp_path / shard_name(4), Rows(*(np.zeros(0, np.uint64),) * 3, {}), layout)


@pytest.mark.parametrize(
    ("classes", "rows", "measured"), [(1023, 5, 5), (1024, 5, 5), (2047, 5, 5), (2048, 5, 3), (3072, 7, 3)]
)
def test_the_loss_is_measured_on_one_row_in_classes_over_1024(classes: int, rows: int, measured: int) -> None:
    logits = torch.randn(rows, classes, generator=torch.Generator().manual_seed(0))
    layout = Layout.of(Outputs(logits), TopKCodec(3))
    found = layout.encode(Outputs(logits), seen=seen_of(range(rows)), keys=1).measured
    assert found["rows"] == measured
    every = logits[:: max(1, classes // 1024)].double().softmax(-1).topk(3).values.sum(-1)
    assert found["kept_mass"] == pytest.approx(float(every.sum()), rel=1e-6)
