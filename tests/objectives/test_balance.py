"""Balances: each against its definition in NumPy or torch's own optimizer, splits, state."""

import math
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from decoct.data.base import Source
from decoct.errors import RecipeError
from decoct.objectives.balance.gradnorm import GradNorm, gradnorm_gradient
from decoct.objectives.balance.loss_ratio import LossRatio, loss_ratio_weights
from decoct.objectives.balance.uncertainty import Uncertainty, uncertainty_loss
from decoct.objectives.balance.validation import ValidationBalance
from decoct.objectives.base import Probe, Sum
from decoct.objectives.criterion import Criterion
from decoct.objectives.cross_entropy import CrossEntropy
from decoct.objectives.kd import KD
from decoct.outputs import Batch, Outputs
from decoct.tasks.image_classification import ImageClassification
from decoct.training.budget import Budget
from decoct.training.clock import Clock
from decoct.training.fit import Options, State, fit
from decoct.training.schedules import Linear
from decoct.training.updates import Descent

TASK = ImageClassification(raw=True, classes=("a", "b", "c"))
TERMS = (KD(weight=0.9, temperature=2.0), CrossEntropy(weight=0.1))


def student():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))


def batch(seed=0, size=8):
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 5, generator=drawn)
    return Batch({"student": x, "teacher": x}, torch.randint(3, (size,), generator=drawn))


def teacher_outputs(b):
    return Outputs(b.side("student")[:, :3] * 2)


def built(balance, module, terms=TERMS):
    b = batch()
    with torch.no_grad():
        outputs = Outputs(module(b.side("student")))
    probe = Probe(TASK, b, outputs, {"teacher": teacher_outputs(b)}, {"student": module})
    return Criterion.build(Sum(terms=terms, balance=balance), probe)


def call(criterion, module, b, clock=None, shares=None):
    clock = clock or Clock()
    return criterion(Outputs(module(b.side("student"))), {"teacher": teacher_outputs(b)}, b, clock, shares)


@pytest.mark.parametrize("balance", [LossRatio(), Uncertainty(), ValidationBalance(), GradNorm()])
def test_the_first_step_is_the_plain_sum(balance):
    module = student()
    total, parts = call(built(balance, module), module, batch())
    plain, _ = call(built(None, module), module, batch())
    assert total.item() == pytest.approx(plain.item(), rel=1e-6)
    assert parts["kd"].item() > 0


def test_loss_ratio_against_numpy():
    rng = np.random.default_rng(0)
    module, losses = student(), []
    criterion = built(LossRatio(temperature=1.5, period=3), module).train()
    for step in range(12):
        _, parts = call(criterion, module, batch(int(rng.integers(100))), Clock(step=step))
        losses.append([parts["kd"].item(), parts["cross_entropy"].item()])
        period = step // 3
        expected = np.ones(2)
        if period >= 2:
            means = [np.mean(losses[3 * k : 3 * k + 3], axis=0) for k in range(period)]
            r = np.exp(means[-1] / means[-2] / 1.5)
            expected = 2 * r / r.sum()
        np.testing.assert_allclose(criterion.balancer.used.numpy(), expected, rtol=1e-5)
    assert loss_ratio_weights(torch.ones(2), torch.tensor([0.0, 1.0])).tolist() == [1.0, 1.0]


def test_loss_ratio_by_epochs_counts_a_split_window_once():
    module = student()
    whole, split = built(LossRatio(), module).train(), built(LossRatio(), module).train()
    for epoch in range(4):
        for step in range(2):
            clock = Clock(step=2 * epoch + step, epoch=epoch)
            b = batch(10 * epoch + step)
            call(whole, module, b, clock)
            for part in (slice(0, 2), slice(2, 8)):
                piece = Batch({k: v[part] for k, v in b.inputs.items()}, b.target[part])
                call(split, module, piece, clock, dict.fromkeys(("kd", "cross_entropy"), len(piece) / 8))
    torch.testing.assert_close(whole.balancer.now, split.balancer.now)
    assert whole.balancer.now[0] != 1


def test_uncertainty_is_its_definition_and_is_trained():
    s = np.array([0.3, -0.7])
    v = np.array([2.0, 0.5])
    oracle = sum(math.exp(-a) * b + a / 2 for a, b in zip(s, v))
    assert uncertainty_loss(torch.tensor(v), torch.tensor(s)).item() == pytest.approx(oracle)
    module = student()
    criterion = built(Uncertainty(), module)
    assert [name for name, _ in criterion.named_parameters()] == ["balancer.log_variance"]
    with torch.no_grad():
        criterion.balancer.log_variance.copy_(torch.tensor(s))
    total, parts = call(criterion, module, batch())
    weighted = torch.tensor([0.9 * parts["kd"].item(), 0.1 * parts["cross_entropy"].item()])
    assert total.item() == pytest.approx(uncertainty_loss(weighted, torch.tensor(s)).item(), rel=1e-5)
    total.backward()
    expected = -np.exp(-s) * weighted.numpy() + 0.5
    np.testing.assert_allclose(criterion.balancer.log_variance.grad.numpy(), expected, rtol=1e-5)
    values, log_variance = torch.tensor([2.0, 0.01]), torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([log_variance], lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        uncertainty_loss(values, log_variance).backward()
        optimizer.step()
    np.testing.assert_allclose(log_variance.detach().exp(), 2 * values, rtol=1e-2)


def test_uncertainty_s_penalty_follows_the_shares():
    module = student()
    criterion = built(Uncertainty(), module)
    with torch.no_grad():
        criterion.balancer.log_variance.copy_(torch.tensor([0.4, -0.2]))
    b = batch()
    whole, _ = call(criterion, module, b)
    total = 0.0
    for part in (slice(0, 3), slice(3, 8)):
        piece = Batch({k: v[part] for k, v in b.inputs.items()}, b.target[part])
        total += call(criterion, module, piece, shares=dict.fromkeys(criterion.labels, len(piece) / 8))[0].item()
    assert total == pytest.approx(whole.item(), rel=1e-6)


def test_gradnorm_gradient_is_autograd_s_with_a_constant_target():
    rng = np.random.default_rng(1)
    for _ in range(20):
        w, g, r = (torch.from_numpy(rng.uniform(0.1, 3, 4)) for _ in range(3))
        w.requires_grad_()
        target = ((w * g).mean() * (r / r.mean()) ** 1.2).detach()
        (expected,) = torch.autograd.grad((w * g - target).abs().sum(), w)
        torch.testing.assert_close(gradnorm_gradient(w.detach(), g, r, alpha=1.2), expected)


def test_gradnorm_against_torch_s_adam_at_the_last_shared_weights():
    module, balance = student(), GradNorm(alpha=1.0, lr=0.05)
    criterion = built(balance, module).train()
    factors = torch.ones(2, requires_grad=True)
    adam, first = torch.optim.Adam([factors], lr=0.05), None
    for step in range(5):
        b = batch(step)
        outputs = Outputs(module(b.side("student")))
        _, parts = criterion(outputs, {"teacher": teacher_outputs(b)}, b, Clock(step=step))
        used = factors.detach().clone()
        torch.testing.assert_close(criterion.balancer.used, used, rtol=1e-5, atol=1e-6)
        values = built(None, module, (KD(temperature=2.0),))(outputs, {"teacher": teacher_outputs(b)}, b, Clock())[0]
        other = nn.functional.cross_entropy(outputs.logits, b.target)
        norms = torch.stack(
            [w * torch.autograd.grad(v, module[2].weight, retain_graph=True)[0].norm()
             for w, v in ((0.9, values), (0.1, other))]
        )  # fmt: skip
        losses = torch.stack([parts["kd"], parts["cross_entropy"]])
        first = losses if first is None else first
        r = losses / first
        target = ((factors * norms).mean() * (r / r.mean())).detach()
        adam.zero_grad()
        (factors * norms - target).abs().sum().backward()
        adam.step()
        with torch.no_grad():
            factors.mul_(2 / factors.sum())
    assert criterion.balancer.shared == 1
    assert not criterion.splittable


def test_gradnorm_layers():
    module = student()
    named = built(GradNorm(layer="0"), module).train()
    call(named, module, batch())
    other = built(GradNorm(), module).train()
    call(other, module, batch())
    assert not torch.equal(named.balancer.moments, other.balancer.moments)
    with pytest.raises(ValueError, match="no module 'nope'"):
        built(GradNorm(layer="nope"), module)
    with pytest.raises(RecipeError, match="layer '1' has no weights"):
        built(GradNorm(layer="1"), module)
    assert not any(name.startswith("balancer") for name, _ in other.named_parameters())


def test_looking_at_the_loss_teaches_a_balance_nothing():
    module = student()
    for balance in (GradNorm(), LossRatio(period=1)):
        criterion = built(balance, module).eval()
        before = {k: v.clone() for k, v in criterion.state_dict().items() if isinstance(v, torch.Tensor)}
        with torch.no_grad():
            call(criterion, module, batch())
        call(criterion, module, batch())
        for key, value in before.items():
            torch.testing.assert_close(criterion.state_dict()[key], value, rtol=0, atol=0, equal_nan=True)


def test_validation_lowers_the_teacher_on_a_plateau():
    module = student()
    criterion = built(ValidationBalance(factor=0.5, patience=2, least=0.3, tolerance=0.01), module)
    assert criterion.watches
    weights = []
    for score in (0.5, 0.6, 0.605, 0.60, 0.7, 0.7, float("nan"), 0.7, 0.2):
        criterion.observe({"accuracy": score})
        call(criterion, module, batch())
        weights.append(criterion.weights(Clock()))
    assert [round(w["kd"], 4) for w in weights] == [0.9, 0.9, 0.9, 0.45, 0.45, 0.45, 0.27, 0.27, 0.27]
    assert {w["cross_entropy"] for w in weights} == {0.1}
    with pytest.raises(RecipeError, match="every term listens to a teacher"):
        built(ValidationBalance(), module, (KD(), KD(name="again")))


def test_balance_multiplies_scheduled_weights_and_is_logged():
    module = student()
    criterion = built(ValidationBalance(factor=0.0, patience=1), module, (KD(weight=Linear(1, 0)), CrossEntropy()))
    for score in (0.5, 0.4):
        criterion.observe({"accuracy": score})
    total, parts = call(criterion, module, batch(), Clock(progress=0.5))
    assert criterion.weights(Clock(progress=0.5)) == {"kd": 0.0, "cross_entropy": 1.0}
    assert total.item() == parts["cross_entropy"].item()


def test_where_a_balance_may_stand():
    with pytest.raises(RecipeError, match="put all terms and the balance in the outer one"):
        Sum(terms=TERMS, balance=GradNorm()) + KD(name="more")
    scaled = 0.5 * Sum(terms=TERMS, balance=GradNorm())
    assert scaled.balance == GradNorm()
    assert [each.weight for each in scaled.flat()] == [0.45, 0.05]
    assert "balance" not in Sum(terms=TERMS).plain()
    assert Sum.parse({"terms": [{"use": "kd"}], "balance": {"use": "gradnorm", "alpha": 0.5}}).balance.alpha == 0.5


class Five(Source):
    """Five batches an epoch, from any position."""

    def __init__(self):
        self.at = [0, 0]

    @property
    def length(self):
        return 5

    def __iter__(self):
        while self.at[1] < 5:
            made = batch(7 * self.at[0] + self.at[1])
            self.at[1] += 1
            yield made
        self.at = [self.at[0] + 1, 0]

    def state_dict(self):
        return {"epoch": self.at[0], "batch": self.at[1]}

    def load_state_dict(self, state):
        self.at = [state["epoch"], state["batch"]]


def trained(balance, work):
    """15 steps of the same run in `work`, from the newest checkpoint there; its validation score hangs on the step."""
    module = student()
    criterion = built(balance, module)
    optimizer = torch.optim.AdamW([*module.parameters(), *criterion.parameters()], lr=0.05)
    update = Descent(lambda b: Outputs(module(b.side("student"))), {"teacher": teacher_outputs}, criterion, optimizer)
    source = Five()

    def validate():
        number = 0.5 if 5 * source.at[0] + source.at[1] <= 5 else 0.4
        criterion.observe({"accuracy": number})
        return {"accuracy": number}

    options = Options(log_every=1, checkpoint_seconds=0.0, validate_every=5)
    state = State(student=module, optimizer=optimizer, criterion=criterion)
    history = fit(update, source, state, Budget(steps=15), work=work, validate=validate, options=options)
    return module, criterion, history


@pytest.mark.parametrize(
    "balance",
    [GradNorm(lr=0.1), LossRatio(period=2), Uncertainty(), ValidationBalance(patience=1)],
    ids=lambda b: b.use,
)
def test_a_stopped_run_goes_on_exactly(balance, tmp_path):
    module, criterion, history = trained(balance, tmp_path)
    records = [{key: value for key, value in r.items() if key != "time"} for r in history.records]
    newest, before = sorted(tmp_path.glob("checkpoint-*"), key=lambda path: -int(path.name.partition("-")[2]))
    shutil.rmtree(newest)
    assert before.name != "checkpoint-0"
    again, other, resumed = trained(balance, tmp_path)
    assert resumed.resumed_from is not None
    assert resumed.resumed_from < 15
    assert [{key: value for key, value in r.items() if key != "time"} for r in resumed.records] == records
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters()))
    for key, value in criterion.state_dict().items():
        found = other.state_dict()[key]
        assert torch.equal(value, found) if isinstance(value, torch.Tensor) else value == found
    assert len({record["weights"]["kd"] for record in records if record["kind"] == "train"}) > 1


def after_one_step(balance, weight):
    """The factors of a strong and a weak term after one step; `weight` is that of the weak one."""
    module = student()
    balancer = balance.build(("strong", "weak"), (True, False), TASK, module).train()
    value = module(batch().side("student")).square().mean()
    balancer.factors({"strong": value, "weak": value}, {"strong": 1.0, "weak": weight}, None, Clock())
    return balancer.now.tolist()


@pytest.mark.parametrize("weight", [0.1, -0.1])
def test_gradnorm_takes_a_gradient_by_its_length_whatever_the_sign_of_its_weight(weight):
    """Lengths 1 and 0.1 at equal pace: Adam's first step is lr down for the longer and lr up for the shorter."""
    assert after_one_step(GradNorm(lr=0.05), weight) == pytest.approx([0.95, 1.05], abs=1e-6)


def test_gradnorm_loses_no_term_to_a_long_step():
    """A factor that would fall below 0 stops at 0.001, before the sum is made 2 again."""
    expected = np.array([1e-3, 4.0]) * 2 / 4.001
    assert after_one_step(GradNorm(lr=3.0), 0.1) == pytest.approx(expected, rel=1e-5)


def test_validation_counts_a_score_that_is_better_by_exactly_the_tolerance_as_no_better():
    criterion = built(ValidationBalance(factor=0.5, patience=1, tolerance=0.125), student())
    for score in (0.5, 0.625):
        criterion.observe({"accuracy": score})
    assert criterion.balancer.now.tolist() == [0.5, 1.0]
    for score in (0.75, 0.625 + 0.25):
        criterion.observe({"accuracy": score})
    assert criterion.balancer.now.tolist() == [0.25, 1.0]
