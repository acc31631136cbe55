"""Balanced cross-entropy and cross-entropy with mixed targets against loops in NumPy."""

import numpy as np
import pytest
import torch

from decoct.errors import RecipeError
from decoct.functional import balanced_cross_entropy, cross_entropy
from decoct.objectives.balanced_cross_entropy import BalancedCrossEntropy, effective_number_weights
from decoct.objectives.base import Probe
from decoct.objectives.criterion import Criterion
from decoct.outputs import Batch, Outputs
from decoct.tasks.image_classification import ImageClassification
from decoct.training.clock import Clock

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(7, 4)) * 3
TARGET = RNG.integers(0, 4, 7)
COUNTS = (500, 40, 3, 0)
SOFT = RNG.dirichlet(np.ones(4), 7)


def log_softmax(x):
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def oracle(beta, tau, soft=None, keep=range(7)):
    n = np.maximum(COUNTS, 1)
    w = (1 - beta) / (1 - beta ** n.astype(float))
    w = w * 4 / w.sum()
    prior = n / n.sum()
    rows = []
    for i in keep:
        log_q = log_softmax(LOGITS[i] + tau * np.log(prior))
        t = np.eye(4)[TARGET[i]] if soft is None else soft[i]
        rows.append(-sum(t[c] * w[c] * log_q[c] for c in range(4)))
    return np.mean(rows)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
@pytest.mark.parametrize("tau", [0.0, 1.0, 2.0])
def test_against_numpy(beta, tau):
    logits, target = torch.from_numpy(LOGITS), torch.from_numpy(TARGET)
    found = balanced_cross_entropy(logits, target, counts=COUNTS, beta=beta, tau=tau)
    assert found.item() == pytest.approx(oracle(beta, tau))
    found = balanced_cross_entropy(logits, torch.from_numpy(SOFT), counts=COUNTS, beta=beta, tau=tau)
    assert found.item() == pytest.approx(oracle(beta, tau, SOFT))
    mask = torch.tensor([True, False] * 3 + [True])
    dirty = torch.where(mask, target, -100)
    found = balanced_cross_entropy(logits, dirty, counts=COUNTS, beta=beta, tau=tau, mask=mask)
    assert found.item() == pytest.approx(oracle(beta, tau, keep=range(0, 7, 2)))


def test_without_settings_it_is_the_cross_entropy():
    logits, target = torch.from_numpy(LOGITS), torch.from_numpy(TARGET)
    plain = torch.nn.functional.cross_entropy(logits, target)
    assert balanced_cross_entropy(logits, target, counts=COUNTS).item() == pytest.approx(plain.item())
    weights = effective_number_weights((10, 10, 10), beta=0.99)
    assert weights.tolist() == pytest.approx([1, 1, 1])
    assert effective_number_weights((1000, 1), beta=0.0).tolist() == [1, 1]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_with_distributions_is_torch_s(smoothing):
    logits = torch.from_numpy(LOGITS).requires_grad_()
    soft = torch.from_numpy(SOFT)
    found = cross_entropy(logits, soft, label_smoothing=smoothing)
    expected = torch.nn.functional.cross_entropy(logits, soft, label_smoothing=smoothing)
    assert found.item() == pytest.approx(expected.item())
    (a,), (b,) = (torch.autograd.grad(each, logits) for each in (found, expected))
    torch.testing.assert_close(a, b)
    mask = torch.tensor([True, False] * 3 + [True])
    dirty = torch.where(mask[:, None], soft, torch.nan)
    found = cross_entropy(logits, dirty, label_smoothing=smoothing, mask=mask)
    expected = torch.nn.functional.cross_entropy(logits[mask], soft[mask], label_smoothing=smoothing)
    assert found.item() == pytest.approx(expected.item())
    with pytest.raises(RecipeError, match=r"ids are \[\*B\]"):
        cross_entropy(logits, soft[:, :3])


def test_counts_come_from_the_probe_or_are_asked_for():
    task = ImageClassification(raw=True, classes=tuple("abcd"))
    batch = Batch({"student": torch.zeros(7, 1)}, torch.from_numpy(TARGET))
    outputs = Outputs(torch.from_numpy(LOGITS))
    spec = BalancedCrossEntropy(beta=0.9, tau=1.0)
    criterion = Criterion.build(spec, Probe(task, batch, outputs, {}, {}, counts=COUNTS))
    assert criterion(outputs, {}, batch, Clock())[0].item() == pytest.approx(oracle(0.9, 1.0))
    with pytest.raises(RecipeError, match="give `counts`"):
        Criterion.build(spec, Probe(task, batch, outputs, {}, {}))
    with pytest.raises(RecipeError, match="2 counts for 4 classes"):
        balanced_cross_entropy(outputs.logits, batch.target, counts=(1, 2))
