"""prune takes schemes as names and mappings, as recipes do."""

import pytest
import torch
from torch import nn

import decoct as dc
from decoct.errors import RecipeError

X = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))


def test_schemes_by_name_and_by_mapping_are_the_specs() -> None:
    torch.manual_seed(0)
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2).eval()
    for given, spec in (
        ("heads", dc.Heads()),
        ({"use": "heads", "ratio": 0.25}, dc.Heads(ratio=0.25)),
        ("channels", None),
    ):
        found, wanted = (dc.prune(net, example=X, scheme=each) for each in (given, spec))
        assert torch.equal(found(X), wanted(X))
    for wrong, words in (
        ("head", "scheme.use: 'head' is no pruning scheme; did you mean heads"),
        ({"use": "heads", "ratio": 2}, r"scheme\.ratio: Input should be less than 1"),
        ({"ratio": 0.5}, "scheme: `use` is missing"),
        (3, "scheme: 3 is no pruning scheme"),
    ):
        with pytest.raises(RecipeError, match=words):
            dc.prune(net, example=X, scheme=wrong)
    with pytest.raises(RecipeError, match="scheme brings its own settings"):
        dc.prune(net, example=X, scheme="heads", ratio=0.25)
