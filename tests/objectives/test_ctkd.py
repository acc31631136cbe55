"""CTKD: the value of KD, and a temperature whose gradient is turned round."""

import numpy as np
import pytest
import torch

from decoct.errors import RecipeError
from decoct.functional import ctkd_loss, kd_loss
from decoct.objectives.base import Probe
from decoct.objectives.criterion import Criterion
from decoct.objectives.ctkd import CTKD
from decoct.outputs import Batch, Outputs
from decoct.tasks.image_classification import ImageClassification
from decoct.training.clock import Clock

TASK = ImageClassification(raw=True, classes=tuple("abcde"))


def logits(seed, n=6):
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def criterion(**fields):
    torch.manual_seed(0)
    batch = Batch({"student": torch.zeros(6, 1)}, torch.zeros(6, dtype=torch.long))
    outputs = Outputs(logits(0)), Outputs(logits(1))
    return Criterion.build(CTKD(**fields), Probe(TASK, batch, outputs[0], {"teacher": outputs[1]}, {})).double(), batch


def loss(made, batch, progress=1.0):
    outputs = Outputs(logits(0))
    return made(outputs, {"teacher": Outputs(logits(1))}, batch, Clock(progress=progress))[0]


def test_one_temperature_is_kd_and_several_are_its_mean():
    t = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=torch.float64)
    one = ctkd_loss(logits(0), logits(1), torch.tensor(3.0))
    torch.testing.assert_close(one, kd_loss(logits(0), logits(1), temperature=3.0))
    rows = [kd_loss(logits(0)[k : k + 1], logits(1)[k : k + 1], temperature=t[k].item()) for k in range(6)]
    torch.testing.assert_close(ctkd_loss(logits(0), logits(1), t), torch.stack(rows).mean())
    mask = torch.tensor([True, False, True, True, False, True])
    torch.testing.assert_close(ctkd_loss(logits(0), logits(1), t, mask=mask), torch.stack(rows)[mask].mean())
    with pytest.raises(RecipeError, match="one number, or one for each item"):
        ctkd_loss(logits(0), logits(1), t[:2])


def test_the_gradient_of_the_temperature_is_right_by_finite_differences():
    t = torch.full((6,), 2.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, t: ctkd_loss(s, logits(1), t), (logits(0).requires_grad_(), t))


@pytest.mark.parametrize("per", ["run", "sample"])
def test_theta_ascends_by_as_much_as_reversal_says(per):
    found = {}
    for reversal in (-1.0, 0.0, 1.0, 0.5):
        made, batch = criterion(reversal=reversal, per=per)
        loss(made, batch).backward()
        found[reversal] = made.terms[0].theta.grad.item()
    assert found[-1.0] != 0
    np.testing.assert_allclose([found[0.0], found[1.0], found[0.5]], np.array([0, -1, -0.5]) * found[-1.0], rtol=1e-9)


def test_descending_the_reversed_loss_raises_it():
    made, batch = criterion(reversal=1.0)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.05)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        value = loss(made, batch)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] > values[0]


def test_reversal_follows_the_clock_and_the_temperature_is_logged():
    made, batch = criterion(start=2.0, span=10.0)
    for progress, expected in ((0.0, 0.0), (0.05, 0.5), (0.5, 1.0)):
        assert made.weights(Clock(progress=progress))["ctkd.reversal"] == pytest.approx(expected)
    value = 2 + 10 / (1 + np.exp(-1.0))
    assert made.weights(Clock())["ctkd.temperature"] == pytest.approx(value)
    torch.testing.assert_close(loss(made, batch).detach(), kd_loss(logits(0), logits(1), temperature=value))
    with torch.no_grad():
        made.terms[0].theta.fill_(-1.0)
    loss(made, batch)
    assert made.weights(Clock())["ctkd.temperature"] == pytest.approx(2 + 10 / (1 + np.exp(1.0)))
    assert made.state_dict()["terms.0.theta"].item() == -1.0
