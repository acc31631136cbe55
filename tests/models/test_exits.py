"""Exits: who is sure enough, exactly at the threshold, and who answers."""

import pytest
import torch
from torch import nn

from decoct.models.base import Interface
from decoct.models.exits import WithExits, sure
from decoct.models.mlp import MLP

TABLE = Interface(kind="tabular", shape=(4,), outputs=2)


def test_a_probability_at_the_threshold_is_sure_enough():
    """Two equal logits have exactly a half each; a class alone has exactly 1."""
    even, certain = torch.zeros(1, 2), torch.tensor([[0.0, -torch.inf]])
    outputs = [torch.cat([even, certain]), torch.cat([certain, even])]
    assert sure(outputs, 0.5).tolist() == [[True, True], [True, True]]
    assert sure(outputs, 1.0).tolist() == [[False, True], [True, False]]
    assert sure(outputs, 0.5000001).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(("threshold", "first"), [(0.5, True), (0.51, False)])
def test_the_first_exit_at_the_threshold_answers_and_the_end_where_none_is(threshold, first):
    net = WithExits(model=MLP(hidden=(3, 3)), at=("hidden.0", "hidden.1")).build(TABLE).eval()
    net.threshold = threshold
    with torch.no_grad():
        for each in (*net.heads, net.net.head):
            each.weight.zero_()
        net.heads[0].bias.copy_(torch.tensor([3.0, 3.0]))
        net.heads[1].bias.copy_(torch.tensor([5.0, 5.0]))
        net.net.head.bias.copy_(torch.tensor([7.0, 7.0]))
    ran = []
    net.net.head.register_forward_hook(lambda *_: ran.append(1))
    assert net(torch.ones(2, 4)).tolist() == [[3.0, 3.0] if first else [7.0, 7.0]] * 2
    assert len(ran) == int(not first)
    assert isinstance(net, nn.Module)
