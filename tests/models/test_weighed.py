"""Networks are weighed before they are built."""

from __future__ import annotations

import pytest
import torch

from decoct.errors import RecipeError, ResourceError
from decoct.memory import free_memory
from decoct.models import CATALOGUE, weighed
from decoct.models.given import fresh
from decoct.models.interface import Interface
from decoct.models.mlp import MLP
from decoct.models.small_resnet import SmallResNet
from decoct.models.transformers import Transformers

IMAGES = Interface(kind="image", shape=(1, 8, 8), outputs=10)
BERT = {"model_type": "bert", "num_hidden_layers": 1, "num_attention_heads": 4}


def test_a_network_that_does_not_fit_is_refused_before_it_takes_anything() -> None:
    free = free_memory()
    with pytest.raises(ResourceError, match=r"^mlp: its weights would take [\d,]+ GB of memory or more, .* are free"):
        fresh(MLP(hidden=(65_536,) * (2 + free // (4 * 65_536**2))), IMAGES, {})


@pytest.mark.parametrize("heavy", [weighed.HEAVY, 1000])
@pytest.mark.parametrize("spec", [MLP(hidden=(64,)), SmallResNet(width=4)])
def test_weighing_changes_no_number(spec: object, heavy: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weighed, "HEAVY", heavy)
    torch.manual_seed(3)
    expected, after = spec.build(IMAGES).state_dict(), torch.rand(1)  # type: ignore[attr-defined]
    torch.manual_seed(3)
    found = fresh(spec, IMAGES, {}).state_dict()  # type: ignore[arg-type]
    assert torch.equal(torch.rand(1), after)
    assert all(torch.equal(found[name], each) and each.device.type == "cpu" for name, each in expected.items())


def test_a_network_of_too_many_layers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weighed, "MOST_TENSORS", 20)
    with pytest.raises(ResourceError, match="mlp: it would be made of more than 20 tensors; take fewer layers"):
        fresh(MLP(hidden=(2,) * 20), IMAGES, {})
    with pytest.raises(RecipeError, match=r"config\.num_hidden_layers is 1000000; at most 1024"):
        Transformers(config={**BERT, "num_hidden_layers": 1_000_000})


SIZES = ("width", "widths", "hidden", "depth", "depths", "layers", "heads", "embedding", "expansion", "head", "patch")


def test_sizes_have_bounds() -> None:
    found = 0
    for use in CATALOGUE:
        kind = CATALOGUE.resolve(use)
        for name in set(SIZES) & set(kind.model_fields):
            several = isinstance(kind.model_fields[name].default, tuple)
            for value in (10**9, 10**30):
                with pytest.raises(RecipeError, match=rf"{name}.*less than or equal to"):
                    kind(**{name: (value,) * 3 if several else value})
            if several:
                with pytest.raises(RecipeError, match=f"{name}: .*at most"):
                    kind(**{name: (1,) * 100_000})
            found += 1
    assert found > 15
