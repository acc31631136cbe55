import copy

import pytest
import torch
from torch import nn
from training_toy import HandCriterion, Toy, equal_states, network, predictor

from decoct.errors import RecipeError, ResourceError
from decoct.training.budget import Budget
from decoct.training.clock import Clock
from decoct.training.fit import NonFinite, Options, State, fit
from decoct.training.schedules import Linear
from decoct.training.updates import Descent, Engine, descend


def gradients_of(splits, student, teacher):
    """Gradients of one window of the 13 samples, split into batches of these sizes."""
    whole = Toy(sizes=(13,), dtype=torch.float64).make(0, 0)
    window, start = [], 0
    for size in splits:
        part = slice(start, start + size)
        window.append(type(whole)({"student": whole.side("student")[part]}, whole.target[part], whole.labelled[part]))
        start += size
    assert start == 13
    student = copy.deepcopy(student)
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    before = [each.detach().clone() for each in student.parameters()]
    update = Descent(predictor(student), {"teacher": predictor(teacher)}, HandCriterion(), optimizer)
    logged = update(window, Clock())
    return [a - b.detach() for a, b in zip(before, student.parameters())], logged


@pytest.mark.parametrize("splits", [(6, 7), (1, 12), (4, 4, 5), (1,) * 13, (2, 3, 8)])
def test_gradients_do_not_depend_on_the_split(splits):
    student, teacher = network(0, torch.float64), network(1, torch.float64)
    whole, logged = gradients_of((13,), student, teacher)
    split, logged_split = gradients_of(splits, student, teacher)
    for a, b in zip(whole, split):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    for name in ("loss", "kd", "cross_entropy"):
        torch.testing.assert_close(logged[name], logged_split[name], rtol=0, atol=1e-10)


def test_a_mean_of_means_would_differ():
    """The case above can fail: equal shares give other gradients."""

    class Equal(HandCriterion):
        def items(self, batch):
            return {"kd": 1, "cross_entropy": 1}

    student, teacher = network(0, torch.float64), network(1, torch.float64)
    whole, _ = gradients_of((13,), student, teacher)
    batch = Toy(sizes=(13,), dtype=torch.float64).make(0, 0)
    parts = [
        type(batch)({"student": batch.side("student")[p]}, batch.target[p], batch.labelled[p])
        for p in (slice(0, 2), slice(2, 13))
    ]
    before = [each.detach().clone() for each in student.parameters()]
    update = Descent(
        predictor(student), {"t": predictor(teacher)}, Equal(), torch.optim.SGD(student.parameters(), lr=1.0)
    )
    update(parts, Clock())
    assert max((a - (b - c.detach())).abs().max() for a, b, c in zip(whole, before, student.parameters())) > 1e-3


def test_a_window_without_labels_counts_nothing():
    student, teacher = network(0), network(1)
    window = [Toy().make(0, 0), Toy().make(0, 1)]
    window = [type(b)(b.inputs, b.target, torch.zeros(8, dtype=torch.bool)) for b in window]
    update = Descent(
        predictor(student), {"t": predictor(teacher)}, HandCriterion(), torch.optim.SGD(student.parameters(), lr=0.1)
    )
    logged = update(window, Clock())
    assert logged["cross_entropy"].item() == 0
    assert logged["kd"].item() > 0


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_fit_is_bitwise_a_bare_loop(optimizer):
    def build():
        student = network(0, dropout=0.3)
        return student, optimizer(student.parameters(), lr=0.05), network(1)

    student, opt, teacher = build()
    torch.manual_seed(5)
    criterion, losses, source = HandCriterion(), [], Toy()
    for epoch in range(3):
        for i in range(source.length):
            batch = source.make(epoch, i)
            with torch.no_grad():
                teacher_outputs = predictor(teacher)(batch)
            loss, _ = criterion(predictor(student)(batch), {"t": teacher_outputs}, batch, Clock())
            opt.zero_grad()
            loss.backward()
            opt.step()
            losses.append(loss.item())

    other, opt2, teacher2 = build()
    torch.manual_seed(5)

    @torch.no_grad()
    def answer(batch):
        return predictor(teacher2)(batch)

    update = Descent(predictor(other), {"t": answer}, HandCriterion(), opt2)
    history = fit(update, Toy(), State(student=other, optimizer=opt2), Budget(epochs=3), options=Options(log_every=1))
    assert [record["loss"] for record in history.records] == losses
    assert equal_states(student.state_dict(), other.state_dict())
    assert equal_states(opt.state_dict(), opt2.state_dict())


def test_a_term_that_relates_samples_is_not_split():
    class Relation(HandCriterion):
        splittable = False

    student = network(0)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    update = Descent(predictor(student), {"t": predictor(network(1))}, Relation(), optimizer)
    batch = Toy().make(0, 0)
    update([batch], Clock())
    with pytest.raises(RecipeError, match="set accumulate to 1"):
        update([batch, batch], Clock())


def test_learning_rate_follows_the_schedule_and_the_user_s_settings_stay():
    student = network(0)
    settings = {"lr": 0.5}
    optimizer = torch.optim.SGD(student.parameters(), **settings)
    update = Descent(predictor(student), {"t": predictor(network(1))}, HandCriterion(), optimizer, lr=Linear(0.1, 0.0))
    update([Toy().make(0, 0)], Clock(progress=0.5))
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert update.settings(Clock(progress=0.25)) == {"weights": {"kd": 0.7, "cross_entropy": 0.5}, "lr": 0.1 * 0.75}
    assert settings == {"lr": 0.5}


def test_clipping_is_torch_s():
    torch.manual_seed(0)
    a, b = nn.Linear(4, 2), nn.Linear(4, 2)
    b.load_state_dict(a.state_dict())
    x = torch.randn(3, 4) * 10
    one, two = (torch.optim.SGD(net.parameters(), lr=0.1) for net in (a, b))
    descend(a(x).square().sum(), one, max_grad_norm=0.3)
    b(x).square().sum().backward()
    nn.utils.clip_grad_norm_(b.parameters(), 0.3)
    two.step()
    assert equal_states(a.state_dict(), b.state_dict())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_descend_takes_no_step_on_numbers_that_are_not_finite(bad):
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with pytest.raises(NonFinite, match="loss"):
        descend(weight.sum() * bad, optimizer)
    with pytest.raises(NonFinite, match="gradient"):
        descend((weight - weight.detach()).abs().sqrt().sum(), optimizer)
    assert weight.tolist() == [1.0, 2.0]


def test_huge_but_finite_gradients_pass():
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    descend((weight * 1e30).sum(), torch.optim.SGD([weight], lr=1e-30))
    assert weight.tolist() == pytest.approx([0.0, 1.0], abs=1e-6)


def test_sparse_and_complex_gradients_are_checked_too():
    table, turn = nn.Embedding(4, 2, sparse=True), nn.Parameter(torch.tensor([1j]))

    def step(table_factor, turn_factor):
        optimizer = torch.optim.SGD([*table.parameters(), turn], lr=0.1)
        table.weight.grad = None
        loss = table(torch.tensor([1, 1])).sum() + turn.real.sum()
        handles = [
            table.weight.register_hook(lambda grad: grad * table_factor),
            turn.register_hook(lambda grad: grad * turn_factor),
        ]
        try:
            return descend(loss, optimizer)
        finally:
            for handle in handles:
                handle.remove()

    assert set(step(1.0, 1.0)) == {"loss"}
    for factors in ((1e39, 1.0), (1.0, float("nan"))):
        with pytest.raises(NonFinite, match="gradient"):
            step(*factors)


def test_terms_may_not_take_the_log_s_names():
    class Named(HandCriterion):
        def weights(self, clock):
            return {"loss": 1.0}

    student = network(0)
    with pytest.raises(RecipeError, match="'loss'"):
        Descent(predictor(student), {}, Named(), torch.optim.SGD(student.parameters(), lr=0.1))


def test_engine_says_what_it_cannot():
    with pytest.raises(RecipeError, match="allowed: auto, cpu, cuda"):
        Engine("tpu")
    with pytest.raises(RecipeError, match="allowed: no, bf16, fp16"):
        Engine("cpu", "fp32")
    with pytest.raises(ResourceError, match="use bf16 or no"):
        Engine("cpu", "fp16")


def test_an_engine_on_the_cpu_does_not_decide_for_the_next(monkeypatch):
    assert Engine("cpu").device == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Engine("cuda").device == torch.device("cuda", 0)
    assert Engine("auto").device == torch.device("cuda", 0)
    assert Engine("cpu").device == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Engine("auto").device == torch.device("cpu")


@pytest.mark.parametrize(
    ("epochs", "batches", "steps"), [(0, 50, 0), (0.001, 50, 1), (0.01, 3, 1), (0.1, 50, 5), (2, 50, 100), (0.5, 3, 2)]
)
def test_a_fraction_of_an_epoch_is_at_least_one_step(epochs, batches, steps):
    assert Budget(epochs=epochs).steps_for(batches) == steps


def test_bf16_runs_models_in_half_precision_and_the_loss_in_full():
    student, seen = network(0), []
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)

    def forward(batch):
        outputs = predictor(student)(batch)
        seen.append(outputs.logits.dtype)
        return outputs

    update = Descent(forward, {"t": predictor(network(1))}, HandCriterion(), optimizer, Engine("cpu", "bf16"))
    update([Toy().make(0, 0)], Clock())
    assert seen == [torch.bfloat16]
    assert all(each.dtype == torch.float32 for each in student.parameters())


@pytest.mark.parametrize("unit", ["steps", "samples"])
def test_a_share_of_a_budget_is_at_least_one_and_of_none_none(unit):
    def part(whole, share):
        return getattr(Budget(**{unit: whole}).part(share), unit)

    assert [part(whole, 0.1) for whole in (0, 1, 4, 6, 100)] == [0, 1, 1, 1, 10]
    assert part(7, 1.0) == 7
    assert Budget(epochs=2).part(0.1) == Budget(epochs=0.2)
    assert Budget(seconds=2.0).part(0.5) == Budget(seconds=1.0)


def test_a_term_with_one_item_in_the_whole_window_counts_it_in_full():
    student, teacher = network(0, torch.float64), network(1, torch.float64)
    window = [Toy(dtype=torch.float64).make(0, place) for place in (0, 1)]
    one = torch.arange(8) == 3
    window = [type(b)(b.inputs, b.target, mask) for b, mask in zip(window, (torch.zeros(8, dtype=torch.bool), one))]
    with torch.no_grad():
        logits = student(window[1].side("student"))[3]
    expected = -logits.log_softmax(-1)[window[1].target[3]]
    update = Descent(
        predictor(student), {"t": predictor(teacher)}, HandCriterion(), torch.optim.SGD(student.parameters(), lr=0.1)
    )
    torch.testing.assert_close(update(window, Clock())["cross_entropy"], expected)


def test_bf16_runs_recurrent_layers_on_every_processor_and_leaves_its_switches_as_they_were():
    """oneDNN has no LSTM of bfloat16 where the processor lacks AVX-512."""
    torch.manual_seed(0)
    layer, x = torch.nn.LSTM(6, 5, batch_first=True, bidirectional=True), torch.randn(4, 7, 6)
    before = torch.backends.mkldnn.enabled
    with Engine("cpu", "bf16").autocast():
        found = layer(x)[0]
    assert torch.backends.mkldnn.enabled == before
    found.float().sum().backward()
    assert layer.weight_ih_l0.grad is not None
    torch.testing.assert_close(found.float(), layer(x)[0], atol=2e-2, rtol=2e-2)
