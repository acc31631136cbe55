"""Interface and its ports: the short form, the form in which earlier code wrote it, widths."""

import json
from pathlib import Path

import pytest
import torch

from decoct.artifact import Artifact, writing
from decoct.errors import RecipeError
from decoct.models.bilstm import BiLSTM
from decoct.models.interface import Interface, Port
from decoct.models.saving import STRUCTURE, load_model, load_spec, save_model

LOGITS = {"logits": Port(kind="logits", shape=(3,))}
LENGTH = {0: "batch", 1: "length"}
WRITTEN_OUT = {
    "image": {"image": Port(kind="image", shape=(1, 8, 6), axes={0: "batch"})},
    "tabular": {"features": Port(kind="features", shape=(9,), axes={0: "batch"})},
    "text": {name: Port(kind="ids", shape=(12,), axes=LENGTH) for name in ("input_ids", "attention_mask")},
}
SHAPES = {"image": (1, 8, 6), "tabular": (9,), "text": (12,)}


@pytest.mark.parametrize("kind", WRITTEN_OUT)
def test_the_short_form_is_one_input_and_logits(kind: str) -> None:
    short = Interface(kind=kind, shape=SHAPES[kind], outputs=3)
    assert short == Interface(kind=kind, inputs=WRITTEN_OUT[kind], outputs=LOGITS)
    assert (short.shape, short.width, short.positions) == (SHAPES[kind], 3, False)
    assert Interface.parse(json.loads(json.dumps(short.plain()))) == short


@pytest.mark.parametrize("kind", WRITTEN_OUT)
def test_what_earlier_model_files_say_is_understood(kind: str) -> None:
    """As version 0.1 wrote model.json, key by key."""
    words = {"vocabulary": 50, "padding": 0} if kind == "text" else {"vocabulary": None, "padding": None}
    found = Interface.parse({"kind": kind, "shape": list(SHAPES[kind]), "outputs": 3, **words})
    assert found == Interface(kind=kind, inputs=WRITTEN_OUT[kind], outputs=LOGITS, **words)


def test_a_model_of_an_earlier_file_is_rebuilt_bit_for_bit(tmp_path: Path) -> None:
    interface = Interface(kind="text", shape=(12,), outputs=3, vocabulary=50, padding=0)
    spec = BiLSTM(embedding=6, hidden=5)
    module = spec.build(interface).eval()
    with writing(tmp_path / "a", kind="model", name="m") as draft:
        save_model(draft, module, spec, interface, side="student")
        record = json.loads((draft.folder / STRUCTURE).read_text())
        earlier = {"kind": "text", "shape": [12], "outputs": 3, "vocabulary": 50, "padding": 0}
        draft.write_json(STRUCTURE, {**record, "interface": earlier})
    artifact = Artifact.load(tmp_path / "a")
    ids = torch.randint(1, 50, (4, 7), generator=torch.Generator().manual_seed(0))
    network = load_model(artifact)
    assert torch.equal(network.module(ids, torch.ones_like(ids)), module(ids, torch.ones_like(ids)))
    assert network.interface == load_spec(artifact)[1] == interface


def test_widths_and_positions_of_several_outputs() -> None:
    dense = Port(kind="logits", shape=(None, None, 4), axes={0: "batch", 1: "height", 2: "width"})
    found = Interface(kind="image", inputs=WRITTEN_OUT["image"], outputs={**LOGITS, "masks": dense})
    assert (dense.width, found.width, found.positions) == (4, 7, True)


def test_a_number_of_outputs_needs_the_shape_of_the_inputs() -> None:
    with pytest.raises(RecipeError, match="outputs"):
        Interface(kind="image", inputs=WRITTEN_OUT["image"], outputs=3)
    with pytest.raises(RecipeError, match="unknown"):
        Interface(kind="image", shape=(1, 2, 2), outputs=3, classes=2)
