"""Distiller: an objective inside one's own loop."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import decoct as dc
from api_toys import equal, images, network
from decoct.errors import RecipeError


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    return network(8, 1), network(3, 2)


def test_the_loss_is_the_one_written_by_hand(pair: tuple) -> None:
    big, small = pair
    x, target = images(16)
    with dc.Distiller(big, small.eval(), 0.9 * dc.KD(temperature=4) + 0.1 * dc.CrossEntropy()) as distiller:
        loss, parts = distiller(x, target)
    with torch.no_grad():
        outputs = copy.deepcopy(big).eval()(x)
    logits = small(x)
    kd = (
        F.kl_div(F.log_softmax(logits / 4, 1), F.log_softmax(outputs / 4, 1), reduction="batchmean", log_target=True)
        * 16
    )
    by_hand = 0.9 * kd + 0.1 * F.cross_entropy(logits, target)
    assert set(parts) == {"kd", "cross_entropy"}
    assert torch.equal(parts["cross_entropy"], F.cross_entropy(logits, target).detach())
    torch.testing.assert_close(parts["kd"], kd.detach(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(loss, by_hand, rtol=1e-6, atol=1e-7)
    total = 0.9 * parts["kd"] + 0.1 * parts["cross_entropy"]
    assert torch.equal(loss.detach(), total)
    small.train()


def test_gradients_in_ones_own_loop_equal_the_hand_written_loss_bitwise(pair: tuple) -> None:
    from decoct.functional import kd_loss

    x, target = images(16)
    ours, theirs = copy.deepcopy(pair[1]).eval(), copy.deepcopy(pair[1]).eval()
    with dc.Distiller(pair[0], ours, 0.7 * dc.KD(temperature=3) + 0.3 * dc.CrossEntropy()) as distiller:
        optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
        for _ in range(3):
            loss, _ = distiller(x, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    big = copy.deepcopy(pair[0]).eval()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    for _ in range(3):
        with torch.no_grad():
            outputs = big(x)
        logits = theirs(x)
        by_hand = 0.7 * kd_loss(logits, outputs, temperature=3.0) + 0.3 * F.cross_entropy(logits, target)
        optimizer.zero_grad()
        by_hand.backward()
        optimizer.step()
        assert by_hand.requires_grad
    assert torch.equal(loss, by_hand)
    assert equal(ours, theirs)


def test_learned_terms_want_an_example_and_are_optimised(pair: tuple) -> None:
    x, target = images(8)
    big, small = copy.deepcopy(pair)
    objective = dc.KD() + dc.Hint(layers={"body": "body"})
    with dc.Distiller(big, small, objective) as distiller, pytest.raises(RecipeError, match="example=inputs"):
        distiller(x, target)
    with dc.Distiller(big, small, objective, example=x[:2]) as distiller:
        student = {id(each) for each in small.parameters()}
        teacher = {id(each) for each in big.parameters()}
        everything = {id(each) for each in distiller.parameters()}
        assert student < everything
        assert not everything & teacher
        before = [each.clone() for each in distiller.parameters()]
        optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
        loss, parts = distiller(x, target)
        assert set(parts) == {"kd", "hint"}
        loss.backward()
        optimizer.step()
        after = list(distiller.parameters())
        assert all(not torch.equal(a, b) for a, b in zip(before, after) if b.ndim > 1)
    assert not any("teacher" in name for name in distiller.state_dict())


def test_the_teacher_is_put_back_and_no_hook_stays(pair: tuple) -> None:
    x, target = images(8)
    big, small = copy.deepcopy(pair)
    big.train()
    kept = copy.deepcopy(big)
    distiller = dc.Distiller(big, small, dc.KD() + dc.Hint(layers={"body": "body"}), example=x)
    with distiller:
        assert not big.training
        assert not any(each.requires_grad for each in big.parameters())
        distiller(x, target)
    with pytest.raises(RecipeError), distiller:
        distiller(x[0, 0, 0], target)
    assert all(each.training for each in big.modules())
    assert all(each.requires_grad for each in big.parameters())
    assert equal(big, kept)
    for module in (*big.modules(), *small.modules()):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    with pytest.raises(RecipeError, match="the Distiller is closed"):
        distiller(x, target)


def test_an_example_leaves_student_and_random_numbers_as_they_were(pair: tuple) -> None:
    x, _ = images(8)
    small = copy.deepcopy(pair[1]).train()
    kept = copy.deepcopy(small)
    dc.Distiller(pair[0], small, dc.KD(), example=x)
    assert equal(small, kept)
    assert all(each.training for each in small.modules())


def test_schedules_stand_where_progress_says(pair: tuple) -> None:
    x, target = images(8)
    small = copy.deepcopy(pair[1]).eval()
    weight = dc.Linear(start=1.0, end=0.0)
    with dc.Distiller(pair[0], small, dc.CrossEntropy() * weight) as distiller:
        losses = [distiller(x, target, progress=each)[0].item() for each in (0.0, 0.25, 1.0)]
    plain = F.cross_entropy(small(x), target).item()
    assert losses == pytest.approx([plain, 0.75 * plain, 0.0], rel=1e-6)


def test_several_teachers_by_name(pair: tuple) -> None:
    x, target = images(8)
    small = copy.deepcopy(pair[1]).eval()
    teachers = {"one": network(8, 5), "two": network(4, 6)}
    objective = dc.KD(teacher="one", name="a") + 2.0 * dc.KD(teacher="two", name="b")
    with dc.Distiller(teachers, small, objective) as distiller:
        _, parts = distiller(x, target)
    for name, teacher in (("a", "one"), ("b", "two")):
        with dc.Distiller(teachers[teacher], small, dc.KD()) as single:
            assert torch.equal(single(x, target)[1]["kd"], parts[name])
    with pytest.raises(RecipeError, match="mean one"):
        dc.Distiller(teachers, small, dc.KD(teacher="ones"))


def test_a_module_shared_by_teacher_and_student_is_refused() -> None:
    stem = nn.Linear(4, 4)
    big, small = nn.Sequential(stem, nn.Linear(4, 3)), nn.Sequential(nn.ReLU(), stem, nn.Linear(4, 3))
    with pytest.raises(RecipeError, match=r"share '1' \(1.weight\).*copy.deepcopy"):
        dc.Distiller(big, small, 1.0 * dc.KD())
    assert stem.weight.requires_grad
    dc.Distiller(copy.deepcopy(big), small, 1.0 * dc.KD())


def test_a_part_of_the_teacher_put_into_training_mode_answers_in_eval_mode() -> None:
    big, small = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.9)), nn.Linear(4, 3)
    with dc.Distiller(big, small, 1.0 * dc.KD(temperature=1)) as distiller:
        x, y = torch.randn(8, 4), torch.zeros(8, dtype=torch.long)
        first = distiller(x, y)[0].item()
        big[1].train()
        assert distiller(x, y)[0].item() == first
        assert not big[1].training


class Moved(nn.Linear):
    """Says where it was moved, and stays."""

    def to(self, device: torch.device) -> Moved:
        self.went.append(str(device))
        return self


def test_teachers_answer_where_the_student_is(tmp_path: Path) -> None:
    """No second device is needed: a student of shapes alone stands for one that is elsewhere."""
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(x, torch.arange(12) % 3), batch_size=6)
    dc.label(nn.Linear(4, 3), loader, tmp_path / "store")
    live, student = Moved(4, 3), nn.Linear(4, 3)
    live.went = []
    teachers = {"live": live, "stored": dc.Stored(tmp_path / "store")}
    objective = dc.KD(teacher="live") + dc.KD(teacher="stored", name="other")
    for device in ("cpu", "meta"):
        live.went.clear()
        with dc.Distiller(teachers, student.to(device), objective) as distiller:
            outputs = distiller._teachers["stored"](distiller._batch(x, None))
        assert outputs.logits is not None
        assert outputs.logits.device.type == device
        assert set(live.went) == {device, "cpu"}
        assert live.went[0] == device


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_loop_on_a_gpu(pair: tuple) -> None:
    big, small = (copy.deepcopy(each).cuda() for each in pair)
    x, target = (each.cuda() for each in images(16))
    with dc.Distiller(big, small, dc.KD() + dc.CrossEntropy(), example=x) as distiller:
        loss, _ = distiller(x, target)
    loss.backward()
    assert loss.is_cuda
    assert next(big.parameters()).is_cuda
