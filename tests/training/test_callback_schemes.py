"""A callback's guards: no weights are chosen before it is done; which parameters decay."""

import math

import pytest
import torch
from torch import nn

from decoct.errors import RecipeError
from decoct.pruning._masks import prunable
from decoct.pruning.magnitude import Magnitude
from decoct.training.callback import CHOSEN, once_ready
from decoct.training.clock import Clock
from decoct.training.compression import Evidence
from decoct.training.optimizers import SGD, AdamW


def test_scores_before_the_masks_are_complete_choose_no_weights():
    module = nn.Sequential(nn.Linear(4, 4))
    callback = Magnitude(ratio=0.5).callback(module, Evidence(()), 1.0)
    scored = once_ready(lambda: {"accuracy": 0.5, "loss": 2.0}, callback, "accuracy")
    before = scored()
    assert math.isnan(before.pop(CHOSEN))
    assert before == {"accuracy": 0.5, "loss": 2.0}
    with torch.no_grad():
        callback.after_step(Clock(0, 0, 0.0), torch.optim.SGD(module.parameters()))
        assert math.isnan(scored()[CHOSEN])
        assert callback.finish()
    assert scored() == {"accuracy": 0.5, "loss": 2.0, CHOSEN: 0.5}
    assert int((prunable(module)["0.weight"] == 0).sum()) == 8


@pytest.mark.parametrize("optimizer", [SGD(weight_decay=0.1), AdamW(weight_decay=0.1)])
def test_matrices_decay_and_biases_and_norms_do_not(optimizer):
    module = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.Linear(3, 2))
    decayed, plain = optimizer.build(module).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert {id(each) for each in decayed["params"]} == {id(module[0].weight), id(module[2].weight)}
    assert {id(each) for each in plain["params"]} == {
        id(each) for each in (module[0].bias, module[1].weight, module[1].bias, module[2].bias)
    }
    module.requires_grad_(False)
    with pytest.raises(RecipeError, match="unfreeze"):
        optimizer.build(module)
