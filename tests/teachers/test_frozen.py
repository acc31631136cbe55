import copy
from contextlib import ExitStack

import pytest
import torch
from torch import nn

from decoct.capture import capture
from decoct.errors import IntegrityError, PathError, RecipeError
from decoct.outputs import Batch, Needs, Outputs
from decoct.teachers.contract import checksums, frozen
from decoct.teachers.frozen import Frozen


class Plain:
    """The part of a reading that a teacher uses."""

    kind = "tabular"
    per_pixel = False

    def forward(self, network, batch, needs):
        with capture(network.module, needs.features) as features:
            logits = network.module(batch.side("teacher"))
        return Outputs(logits, features=dict(features))


def network(dropout=0.5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))


def batch(n=6, seed=1):
    return Batch({"teacher": torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))})


NOTHING = Needs()


def opened(module, needs=NOTHING, **options):
    return Frozen().open(module, Plain(), needs, **options)


def test_dropout_is_off_and_targets_repeat():
    with opened(network()) as teacher:
        assert torch.equal(teacher(batch()).logits, teacher(batch()).logits)
    net = network().eval()
    with opened(net) as teacher:
        assert torch.equal(teacher(batch()).logits, net(batch().side("teacher")))


def test_a_target_does_not_depend_on_batch_mates():
    with opened(network()) as teacher:
        alone = teacher(Batch({"teacher": batch().side("teacher")[:1]})).logits
        among = teacher(batch()).logits[:1]
        others = torch.cat([batch().side("teacher")[:1], 100 * torch.randn(5, 4)])
        torch.testing.assert_close(alone, among)
        torch.testing.assert_close(alone, teacher(Batch({"teacher": others})).logits[:1])


def test_running_statistics_stay():
    net = network()
    before = copy.deepcopy(net.state_dict())
    with opened(net) as teacher:
        for seed in range(5):
            teacher(batch(seed=seed))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_eval_mode_holds_when_somebody_calls_train():
    net = network()
    whole = nn.ModuleDict({"teacher": net, "student": nn.Linear(2, 2)})
    with opened(net) as teacher:
        expected = teacher(batch()).logits
        whole.train()
        assert torch.equal(teacher(batch()).logits, expected)


def test_no_gradient_reaches_the_teacher_and_its_targets_can_enter_a_loss():
    net = network()
    student = nn.Linear(4, 3)
    with opened(net) as teacher:
        teacher_outputs = teacher(batch()).logits
        assert not teacher_outputs.requires_grad
        assert not teacher_outputs.is_inference()
        loss = (student(batch().side("teacher")).softmax(-1) * teacher_outputs).sum()
        loss.backward()
        optimizer = torch.optim.SGD([*student.parameters(), *net.parameters()], lr=1.0)
        optimizer.step()
        assert all(each.grad is None and not each.requires_grad for each in net.parameters())
    assert student.weight.grad.abs().sum() > 0


def test_modes_and_flags_come_back_also_after_an_exception():
    net = network()
    net[0].weight.requires_grad_(False)
    net[3].eval()

    def flags():
        return [m.training for m in net.modules()], [p.requires_grad for p in net.parameters()]

    before = flags()
    with opened(net):
        assert flags() == ([False] * 6, [False] * 6)
    assert flags() == before
    with pytest.raises(ZeroDivisionError), opened(net):
        raise ZeroDivisionError
    assert flags() == before
    with ExitStack() as stack:
        stack.enter_context(opened(net))
        stack.enter_context(opened(net))
    assert flags() == before


def test_features_are_captured_and_no_hook_stays():
    net = network()
    with opened(net, Needs(frozenset({"0", "2"}))) as teacher:
        outputs = teacher(batch())
        assert outputs.features["0"].shape == (6, 8)
        assert not outputs.features["2"].requires_grad
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in net.modules())
    with pytest.raises(PathError, match="no module '00'"), opened(net, Needs(frozenset({"00"}))) as teacher:
        teacher(batch())
    assert not any(m._forward_hooks for m in net.modules())


class Counting(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how
        self.inner = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=how != "silent")
        self.register_buffer("kind", torch.zeros(2, dtype=torch.bfloat16))

    def forward(self, x):
        if self.how in ("in place", "silent"):
            self.calls += 1
        elif self.how == "anew":
            self.calls = self.calls + 1
        elif self.how == "added":
            self.register_buffer("more", torch.ones(1))
        elif self.how == "half":
            self.kind[1] = 1
        elif self.how == "parameter":
            self.inner.bias.data[0] += 1e-7
        return self.inner(x)


@pytest.mark.parametrize(
    "how, name",
    [
        ("in place", "buffer calls"),
        ("silent", "buffer calls"),
        ("anew", "buffer calls"),
        ("added", "buffer more"),
        ("half", "buffer kind"),
        ("parameter", "parameter inner.bias"),
    ],
)
def test_a_model_that_changes_itself_is_caught_and_named(how, name):
    with (
        pytest.raises(IntegrityError, match=rf"teacher Counting changed while it taught: {name};"),
        opened(Counting(how)) as teacher,
    ):
        teacher(batch())


def test_a_breach_does_not_hide_the_error_that_ended_the_body():
    with pytest.raises(ZeroDivisionError), opened(Counting("in place")) as teacher:
        _ = teacher(batch()).logits.shape[0] / 0


def test_an_optimizer_that_holds_teacher_weights_with_gradients_is_caught():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net[4].weight.grad = torch.ones_like(net[4].weight)
    with pytest.raises(IntegrityError, match=r"parameter 4\.weight"), opened(net):
        optimizer.step()


def test_every_bit_of_every_kind_of_tensor_counts():
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.bool):
        holder = nn.Module()
        holder.register_buffer("x", torch.zeros(3, 5).to(dtype).t())
        holder.register_buffer("scalar", torch.zeros(()).to(dtype))
        before = checksums(holder)
        assert checksums(holder) == before
        holder.x[4, 2] = 1
        assert [name for name in before if checksums(holder)[name] != before[name]] == ["buffer x"]
        holder.x[4, 2] = 0
        assert checksums(holder) == before


def test_autocast_of_the_run_is_used():
    with opened(network(), autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16)) as teacher:
        assert teacher(batch()).logits.dtype == torch.bfloat16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_an_accelerator_the_contract_is_the_same_and_the_module_comes_home():
    net = Counting("none")
    with frozen(net, "cuda") as teacher:
        assert teacher.inner.weight.is_cuda
        kept = teacher.inner.bias.clone()
        before = checksums(teacher)
        teacher.inner.bias.data[0] += 1e-7
        assert [name for name in before if checksums(teacher)[name] != before[name]] == ["parameter inner.bias"]
        teacher.inner.bias.data.copy_(kept)
    assert net.inner.weight.device.type == "cpu"


def test_what_is_no_module_is_refused():
    with pytest.raises(RecipeError, match="not dict; load the module first"):
        opened({})
    with pytest.raises(RecipeError, match="without gradients"):
        opened(network(), Needs(gradient=True))


def test_another_shape_of_the_same_numbers_is_a_change():
    holder = nn.Module()
    holder.register_buffer("x", torch.arange(6.0).view(2, 3))
    with pytest.raises(IntegrityError, match="buffer x"), frozen(holder):
        holder.x = holder.x.view(3, 2)
