"""Stores of what a model says without its head: the same bytes as of its logits, made some rows at a time."""

import numpy as np
import pytest
import torch
from store_toy import seen_of

from decoct import outputs
from decoct.outputs import Factored, Head, Outputs
from decoct.store.codecs.base import Codec
from decoct.store.codecs.dense import DenseCodec
from decoct.store.codecs.top_k import TopKCodec
from decoct.store.layout import Layout

CLASSES = 2100
CODECS = [TopKCodec(k=8), TopKCodec(k=4, tail="sample", draws=3), TopKCodec(k=4, tail="uniform"), DenseCodec()]


def whole_numbers(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """So that sums are exact in whatever order they are taken."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("at_once", [1, 4, 1000])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("codec", CODECS, ids=lambda each: f"{each.use}-{getattr(each, 'tail', '')}")
def test_rows_are_those_of_the_logits(
    codec: Codec, ragged: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "ROOM", (at_once * 4 * CLASSES, 0))
    head = Head(whole_numbers((CLASSES, 6), 1), whole_numbers((CLASSES,), 2), scale=0.5)
    said = Factored(whole_numbers((3, 4, 6) if ragged else (5, 6), 3), head)
    mask = torch.tensor([[True] * 4, [True, False, True, False], [False] * 4]) if ragged else None
    count = len(said.hidden)
    found = []
    for each in (Outputs(said, mask=mask), Outputs(said.dense(), mask=mask)):
        layout = Layout.of(each, codec)
        found.append((layout, layout.encode(each, seen=seen_of(range(count)), keys=1)))
    (ours, rows), (theirs, expected) = found
    assert ours == theirs
    assert ours.classes == CLASSES
    for name, cell in expected.cells.items():
        one, two = (getattr(each, "bytes", each) for each in (rows.cells[name], cell))
        assert np.array_equal(one, two), name
    assert rows.measured.keys() == expected.measured.keys() == {"rows", "kl", "kept_mass"}
    for name, value in expected.measured.items():
        assert rows.measured[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name
    assert rows.measured["rows"] == -(-(6 if ragged else 5) // 2), "one row in two of so many classes is measured"


def test_no_row_is_kept() -> None:
    said = Factored(torch.ones(2, 3, 4), Head(torch.ones(50, 4)))
    each = Outputs(said, mask=torch.zeros(2, 3, dtype=torch.bool))
    rows = Layout.of(each, TopKCodec(k=2)).encode(each, seen=seen_of(range(2)), keys=1)
    assert len(rows) == 2
    assert rows.measured == {}
