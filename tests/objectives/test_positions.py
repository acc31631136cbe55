"""Which positions of features are padding: masks by the reader and by the layer, lengths that do not fit."""

import pytest
import torch

import decoct.functional as F
from decoct.errors import RecipeError
from decoct.objectives._positions import mask_of
from decoct.objectives.base import Objective, Probe
from decoct.objectives.criterion import Criterion
from decoct.objectives.hidden_mse import HiddenMSE
from decoct.objectives.hint import Hint
from decoct.objectives.layer_fusion import LayerFusion
from decoct.outputs import Batch, Outputs
from decoct.tasks.image_classification import ImageClassification
from decoct.training.clock import Clock

TASK = ImageClassification(raw=True, classes=tuple("abcd"))
LENGTHS = {"student": 5, "teacher": 6, "decoder": 3}


def mask(length: int, seed: int) -> torch.Tensor:
    """int64 `[4, length]`, at least one position of each sample."""
    ends = torch.randint(1, length + 1, (4, 1), generator=torch.Generator().manual_seed(seed))
    return (torch.arange(length) < ends).long()


def batch() -> Batch:
    student = {"input_ids": mask(5, 1), "attention_mask": mask(5, 1), "decoder_attention_mask": mask(3, 2)}
    return Batch({"student": student, "teacher": {"attention_mask": mask(6, 3)}}, torch.zeros(4, dtype=torch.long))


def outputs(seed: int) -> Outputs:
    drawn = torch.Generator().manual_seed(seed)
    lengths = {"encoder.layer.0": 5, "decoder.layers.0": 3, "theirs.layer.0": 6, "patches": 7}
    features = {name: torch.randn(4, n, 2, generator=drawn, dtype=torch.float64) for name, n in lengths.items()}
    return Outputs(torch.randn(4, 4, generator=drawn), features=features)


def built(objective: Objective, reader: str = "student") -> Criterion:
    probe = Probe(TASK, batch(), outputs(1), {"t": outputs(2)}, {}, reader=reader)
    return Criterion.build(objective, probe)


def value(criterion: Criterion) -> float:
    return criterion(outputs(1), {"t": outputs(2)}, batch(), Clock())[0].item()


@pytest.mark.parametrize(
    ("layer", "reader", "kept"),
    [
        ("encoder.layer.0", "student", mask(5, 1)),
        ("decoder.layers.0", "student", mask(3, 2)),
        ("theirs.layer.0", "teacher", mask(6, 3)),
    ],
)
def test_the_mask_is_that_of_the_reader_and_of_the_layer(layer: str, reader: str, kept: torch.Tensor) -> None:
    for objective in (HiddenMSE(layers={layer: layer}), LayerFusion(layers={layer: (layer,)})):
        criterion = built(objective, reader)
        own, theirs = (each.features[layer][kept.bool()] for each in (outputs(1), outputs(2)))
        assert value(criterion) == pytest.approx((own - theirs).square().mean().item(), rel=1e-12)
        assert int(criterion.items(batch())[objective.label]) == int(kept.sum())


def test_a_layer_of_another_length_than_its_mask_is_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"student patches \[4, 7, 2\] has 7 positions, and attention_mask of the inp"
    ):
        built(HiddenMSE(layers={"patches": "patches"}))
    assert value(built(Hint(layers={"patches": "patches"}))) == pytest.approx(
        F.hint_loss(outputs(1).features["patches"], outputs(2).features["patches"]).item()
    )
    plain = Probe(TASK, Batch({"student": torch.zeros(4, 3)}), outputs(1), {"t": outputs(2)}, {})
    assert int(Criterion.build(HiddenMSE(layers={"patches": "patches"}), plain).items(plain.batch)["hidden_mse"]) == 4


def test_layers_under_unlike_masks_are_two_terms() -> None:
    layers = {name: name for name in ("encoder.layer.0", "decoder.layers.0")}
    with pytest.raises(RecipeError, match=r"unlike masks \(encoder.layer.0 by attention_mask, decoder.layers.0 by dec"):
        built(HiddenMSE(layers=layers))


def test_a_module_that_is_only_called_decoder_has_the_usual_mask() -> None:
    assert mask_of({"attention_mask": 1}, "cls.predictions.decoder") == "attention_mask"
    assert mask_of({"decoder_attention_mask": 1}, "encoder.0") is None
    assert mask_of(torch.zeros(1), "encoder.0") is None
