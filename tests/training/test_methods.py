"""Updates of their own, each against the same thing written by hand or in closed form."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_toy import HandCriterion, Toy, equal_states, network, predictor, timeless

from decoct.data.sources import HELD_OUT
from decoct.errors import RecipeError
from decoct.outputs import Batch, Outputs
from decoct.training.adversarial import HEAD, Adversarial, Attacked, under_attack
from decoct.training.attacks.base import attacked, label_loss, teacher_loss
from decoct.training.attacks.fgsm import FGSM
from decoct.training.attacks.pgd import PGD
from decoct.training.averages import Average, Following
from decoct.training.budget import Budget
from decoct.training.clock import Clock
from decoct.training.exits import Exits
from decoct.training.fit import Options, State, fit
from decoct.training.meta import Answering, Meta, Multipliers
from decoct.training.mutual import Mutual
from decoct.training.updates import Descent


def sgd(*parts, lr=0.1):
    return torch.optim.SGD(nn.ModuleList(parts).parameters(), lr=lr, momentum=0.9)


def batch_of(dtype=torch.float32, n=8):
    return Toy(sizes=(n,), dtype=dtype).make(0, 0)


def weights_of(*modules):
    return [each.detach().clone() for module in modules for each in module.parameters()]


def kl(teacher, student):
    return (teacher.softmax(-1) * (teacher.log_softmax(-1) - student.log_softmax(-1))).sum(-1).mean()


def labelled_ce(logits, batch):
    picked = F.cross_entropy(logits, batch.target, reduction="none") * batch.labelled
    return picked.sum() / batch.labelled.sum().clamp(min=1)


class TestMutual:
    @staticmethod
    def update(peers, lr=0.1):
        names = [chr(ord("a") + k) for k in range(len(peers))]
        criteria = {own: {o: HandCriterion() for o in names if o != own} for own in names}
        forwards = {name: predictor(each) for name, each in zip(names, peers)}
        return Mutual(forwards, criteria, sgd(*peers, lr=lr))

    def test_two_peers_are_the_loop_by_hand(self):
        peers = [network(0), network(1)]
        hand = copy.deepcopy(peers)
        update, optimizer = self.update(peers), sgd(*hand)
        for step in range(3):
            batch = Toy().make(0, step)
            logged = update([batch], Clock())
            x = batch.side("student")
            outputs = [each(x) for each in hand]
            losses = [
                0.7 * kl(outputs[1 - k].detach(), outputs[k]) + 0.5 * labelled_ce(outputs[k], batch) for k in (0, 1)
            ]
            optimizer.zero_grad()
            (losses[0] + losses[1]).backward()
            optimizer.step()
            assert logged["loss"].item() == pytest.approx(sum(losses).item(), rel=1e-6)
        for a, b in zip(weights_of(*peers), weights_of(*hand)):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-7)

    def test_each_of_three_hears_the_mean_of_the_others(self):
        peers = [network(k, torch.float64) for k in range(3)]
        batch = batch_of(torch.float64)
        total, terms, _ = self.update(peers).losses(batch, Clock(), None)
        outputs = [each(batch.side("student")) for each in peers]
        expected = 0.0
        for k in range(3):
            others = torch.stack([kl(outputs[o].detach(), outputs[k]) for o in range(3) if o != k]).mean()
            torch.testing.assert_close(terms[f"{'abc'[k]}.kd"], others.detach())
            expected = expected + 0.7 * others + 0.5 * labelled_ce(outputs[k], batch)
        torch.testing.assert_close(total, expected)

    def test_no_peer_is_moved_by_what_another_learns_from_it(self):
        """The gradient of a peer is that of its own loss alone."""
        peers = [network(0, torch.float64), network(1, torch.float64)]
        batch = batch_of(torch.float64)
        total, _, _ = self.update(peers).losses(batch, Clock(), None)
        found = torch.autograd.grad(total, list(peers[0].parameters()))
        x = batch.side("student")
        alone = 0.7 * kl(peers[1](x).detach(), peers[0](x)) + 0.5 * labelled_ce(peers[0](x), batch)
        for a, b in zip(found, torch.autograd.grad(alone, list(peers[0].parameters()))):
            torch.testing.assert_close(a, b)

    def test_gradients_do_not_depend_on_the_split(self):
        whole, moved = batch_of(torch.float64, 13), []
        for sizes in ((13,), (6, 7), (1, 12)):
            peers = [network(k, torch.float64) for k in range(3)]
            window, start = [], 0
            for size in sizes:
                part = slice(start, start + size)
                window.append(Batch({"student": whole.side("student")[part]}, whole.target[part], whole.labelled[part]))
                start += size
            self.update(peers)(window, Clock())
            moved.append(weights_of(*peers))
        for other in moved[1:]:
            for a, b in zip(moved[0], other):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


class TestExits:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(3)
            self.first, self.head, self.end = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, batch):
            hidden = self.first(batch.side("student")).relu()
            return Outputs(self.end(hidden), features={"heads.0": self.head(hidden)})

    class End(HandCriterion):
        def items(self, batch):
            return {"cross_entropy": batch.labelled.sum()}

        def weights(self, clock):
            return {"cross_entropy": 1.0}

        def forward(self, student, teachers, batch, clock, shares=None):
            loss = labelled_ce(student.logits, batch)
            return loss if shares is None else loss * shares["cross_entropy"], {"cross_entropy": loss.detach()}

    def test_exits_learn_from_the_end_and_the_end_does_not_learn_from_them(self):
        net, batch = self.Net(), batch_of()
        update = Exits(net, {"early": "heads.0"}, self.End(), {"early": HandCriterion()}, sgd(net))
        total, terms, _ = update.losses(batch, Clock(), None)
        outputs = net(batch)
        exit, end = outputs.features["heads.0"], outputs.logits
        expected = labelled_ce(end, batch) + 0.7 * kl(end.detach(), exit) + 0.5 * labelled_ce(exit, batch)
        torch.testing.assert_close(total, expected)
        assert set(terms) == {"cross_entropy", "early.kd", "early.cross_entropy"} == set(update.weights(Clock()))
        found = torch.autograd.grad(total, net.end.weight)[0]
        torch.testing.assert_close(found, torch.autograd.grad(labelled_ce(net(batch).logits, batch), net.end.weight)[0])


class TestAverage:
    def test_weights_follow_as_the_formula_says(self):
        model, decay = network(0, torch.float64), 0.8
        average, expected = Average(model, decay), None
        for step in range(6):
            with torch.no_grad():
                for each in model.parameters():
                    each.add_(torch.randn_like(each))
            average.follow(model)
            now, kept = model[0].weight.detach().clone(), min(decay, 1 - 1 / (step + 1))
            expected = now if expected is None else kept * expected + (1 - kept) * now
        torch.testing.assert_close(average.module[0].weight, expected)
        assert not average.module.training
        assert not any(each.requires_grad for each in average.module.parameters())

    def test_running_statistics_are_averaged_and_counts_copied(self):
        model = nn.Sequential(nn.BatchNorm1d(5))
        average = Average(model, 0.5)
        for _ in range(3):
            model(torch.randn(4, 5) + 7)
            average.follow(model)
        assert average.module[0].num_batches_tracked.item() == 3
        assert not torch.equal(average.module[0].running_mean, model[0].running_mean)

    def test_a_run_that_goes_back_ends_alike(self, tmp_path):
        def run(work, steps):
            torch.manual_seed(0)
            model = network(0, dropout=0.3)
            average = Average(model, 0.9)
            teachers = {"average": predictor(average.module)}
            update = Following(Descent(predictor(model), teachers, HandCriterion(), sgd(model)), model, average)
            source, state = Toy(), State(student=average, model=model, optimizer=update.update.optimizer)
            calls = iter(range(steps))

            def stopped(window, clock):
                if next(calls, None) is None:
                    raise KeyboardInterrupt
                return update(window, clock)

            options = Options(checkpoint_seconds=0.0, log_every=2)
            history = fit(stopped, source, state, Budget(steps=12), work=work, options=options)
            return history, state.state_dict()

        whole, state = run(tmp_path / "whole", 99)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", 7)
        history, again = run(tmp_path / "cut", 99)
        assert history.resumed_from
        assert equal_states(again, state)
        assert timeless(history.records) == timeless(whole.records)


class TestAttacks:
    @staticmethod
    def linear(seed=0):
        torch.manual_seed(seed)
        return nn.Linear(5, 3).double()

    def test_fgsm_and_pgd_reach_the_best_corner_for_a_linear_loss(self):
        w, clean = torch.tensor([1.0, -2.0, 0.5, -0.1, 3.0]), torch.rand(4, 5) * 200 + 20
        best = clean + 4 * w.sign()
        for attack in (FGSM(epsilon=4), PGD(epsilon=4, step=1.5, steps=6), PGD(epsilon=4, steps=2, random_start=False)):
            torch.testing.assert_close(attack.perturb(lambda x: (x * w).sum(), clean), best)

    def test_answers_about_clean_inputs_are_none_about_attacked_ones(self):
        model, clean = network(0), batch_of()
        batch = replace(clean, keys=np.arange(len(clean)), seen=np.arange(len(clean)), tickets={"teacher": "an answer"})
        found = attacked(PGD(low=-9, high=9, epsilon=0.1), model, predictor(model), batch, "student", label_loss)
        assert (found.tickets, found.seen) == ({}, None)
        assert found.keys is batch.keys
        assert found.target is batch.target

    def test_attacked_inputs_stay_within_distance_and_range(self):
        clean = torch.tensor([[0.0, 3.0, 128.0, 253.0, 255.0]])
        for seed in range(5):
            torch.manual_seed(seed)
            found = PGD(epsilon=8, step=5, steps=3).perturb(lambda x: (x * torch.randn(5)).sum(), clean)
            assert ((found - clean).abs() <= 8).all()
            assert found.min() >= 0
            assert found.max() <= 255

    def test_the_model_is_left_as_it_was(self):
        model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
        model[2].eval()
        before = copy.deepcopy(model.state_dict())
        batch = Batch(
            {"student": torch.randint(0, 256, (6, 5), dtype=torch.uint8)}, torch.tensor([0, 1, 2, 0, 1, -100])
        )
        forward = lambda b: Outputs(model(b.side("student").float()))  # noqa: E731
        found = attacked(FGSM(), model, forward, batch, "student", label_loss)
        assert model.training
        assert not model[2].training
        assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
        assert all(each.grad is None for each in model.parameters())
        assert not found.side("student").requires_grad
        assert torch.equal(found.side("student")[5], batch.side("student")[5].float())
        assert batch.side("student").dtype == torch.uint8

    def test_the_loss_rises_and_the_teacher_is_fled(self):
        model, teacher = network(0), network(1)
        batch = batch_of(n=32)
        near = {"low": -9.0, "high": 9.0, "epsilon": 0.3, "step": 0.1}
        found = attacked(PGD(**near), model, predictor(model), batch, "student", label_loss)
        assert label_loss(predictor(model)(found), batch) > label_loss(predictor(model)(batch), batch)
        teacher_outputs = {"teacher": predictor(teacher)(batch)}
        loss = teacher_loss(teacher_outputs)
        expected = kl(teacher_outputs["teacher"].logits, model(batch.side("student"))) * 32
        torch.testing.assert_close(loss(predictor(model)(batch), batch), expected)
        found = attacked(PGD(**near), model, predictor(model), batch, "student", loss)
        assert loss(predictor(model)(found), batch) > loss(predictor(model)(batch), batch)

    def test_numbers_of_unknown_range_and_text_are_refused(self):
        model = network(0)
        with pytest.raises(RecipeError, match="give low, high and epsilon"):
            attacked(PGD(), model, predictor(model), batch_of(), "student", label_loss)
        text = Batch({"student": {"input_ids": torch.zeros(2, 3)}})
        with pytest.raises(RecipeError, match="text"):
            attacked(PGD(), model, predictor(model), text, "student", label_loss)
        with pytest.raises(RecipeError, match="low must be below high"):
            PGD(low=1.0, high=0.0)

    def test_scores_under_attack_are_worse(self):
        model, batch = network(0), batch_of(n=64)
        attack = PGD(low=-9.0, high=9.0, epsilon=1.0, step=0.3)
        with torch.no_grad():
            outputs = under_attack(attack, model, predictor(model), "student")(batch)
        right = lambda logits: (logits.argmax(-1) == batch.target).sum()  # noqa: E731
        assert right(outputs.logits) < right(model(batch.side("student")))


class TestAdversarial:
    class Robust(HandCriterion):
        """KL(teacher ‖ attacked student) alone."""

        def items(self, batch):
            return {"robust": len(batch)}

        def weights(self, clock):
            return {"robust": 1.0}

        def forward(self, student, teachers, batch, clock, shares=None):
            loss = kl(teachers["teacher"].logits, student.heads[HEAD].logits)
            return loss if shares is None else loss * shares["robust"], {"robust": loss.detach()}

    @pytest.mark.parametrize("against", ["labels", "teacher"])
    def test_it_is_the_loop_by_hand(self, against):
        model, teacher = network(0), network(1)
        hand = copy.deepcopy(model)
        attack = PGD(low=-9.0, high=9.0, epsilon=0.3, step=0.1, steps=3, random_start=False)
        student = Attacked(model, predictor(model), attack, "student", against)
        update = Adversarial(student, {"teacher": predictor(teacher)}, self.Robust(), sgd(model))
        optimizer = sgd(hand)
        for step in range(3):
            batch = Toy().make(0, step)
            x = batch.side("student")
            update([batch], Clock())
            teacher_outputs, found = teacher(x).detach(), x
            for _ in range(3):
                leaf = found.detach().requires_grad_()
                if against == "labels":
                    loss = F.cross_entropy(hand(leaf), batch.target, reduction="sum")
                else:
                    loss = kl(teacher_outputs, hand(leaf)) * len(x)
                found = x + (leaf + 0.1 * torch.autograd.grad(loss, leaf)[0].sign() - x).clamp(-0.3, 0.3)
            optimizer.zero_grad()
            kl(teacher_outputs, hand(found.detach())).backward()
            optimizer.step()
        for a, b in zip(weights_of(model), weights_of(hand)):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


class TestMeta:
    @staticmethod
    def update(model, teacher, lr=0.1, meta_lr=0.5):
        answering = Answering(model, lambda each, batch: Outputs(each(batch.side("student"))))
        multipliers = Multipliers(["kd", "cross_entropy"]).to(torch.float64)
        held_out = lambda outputs, batch: F.cross_entropy(outputs.logits, batch.target)  # noqa: E731
        return Meta(
            answering,
            {"teacher": predictor(teacher)},
            HandCriterion(),
            multipliers,
            held_out,
            torch.optim.SGD(model.parameters(), lr=lr),
            torch.optim.SGD(multipliers.parameters(), lr=meta_lr),
        )

    @staticmethod
    def batch():
        return replace(batch_of(torch.float64), also={HELD_OUT: Toy(dtype=torch.float64).make(1, 0)})

    def test_the_gradient_is_that_of_finite_differences(self):
        model, teacher, batch = network(0, torch.float64), network(1, torch.float64), self.batch()
        update = self.update(model, teacher)
        teacher_outputs = {"teacher": Outputs(teacher(batch.side("student")).detach())}
        a = update.multipliers.a
        found = torch.autograd.grad(update.held_out(batch, teacher_outputs, Clock(), 0.1), a)[0]
        for place in range(2):
            values = []
            for move in (1e-5, -1e-5):
                with torch.no_grad():
                    a[place] += move
                values.append(update.held_out(batch, teacher_outputs, Clock(), 0.1).item())
                with torch.no_grad():
                    a[place] -= move
            assert found[place].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)

    def test_looking_ahead_is_one_real_step_of_descent(self):
        model, teacher, batch = network(0, torch.float64), network(1, torch.float64), self.batch()
        update = self.update(model, teacher)
        teacher_outputs = {"teacher": Outputs(teacher(batch.side("student")).detach())}
        ahead = update.held_out(batch, teacher_outputs, Clock(), 0.1).item()
        moved = copy.deepcopy(model)
        optimizer = torch.optim.SGD(moved.parameters(), lr=0.1)
        Descent(predictor(moved), {"teacher": predictor(teacher)}, HandCriterion(), optimizer)([batch], Clock())
        assert ahead == pytest.approx(
            F.cross_entropy(moved(batch.also[HELD_OUT].side("student")), batch.also[HELD_OUT].target).item()
        )

    def test_without_a_meta_step_it_is_plain_descent(self):
        model, teacher, batch = network(0, torch.float64), network(1, torch.float64), self.batch()
        plain = copy.deepcopy(model)
        update = self.update(model, teacher, meta_lr=0.0)
        optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
        descent = Descent(predictor(plain), {"teacher": predictor(teacher)}, HandCriterion(), optimizer)
        for _ in range(3):
            update([batch], Clock())
            descent([batch], Clock())
        for a, b in zip(weights_of(model), weights_of(plain)):
            assert torch.equal(a, b)

    def test_running_statistics_see_the_real_step_alone(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double()
        update = self.update(model, network(1, torch.float64))
        update([self.batch()], Clock())
        assert model[1].num_batches_tracked.item() == 1

    def test_a_useless_term_loses_weight(self):
        """A teacher that is wrong on purpose: its factor falls, that of the labels does not."""
        model, batch = network(0, torch.float64), self.batch()
        batch = replace(batch, labelled=torch.ones(8, dtype=torch.bool), also={HELD_OUT: replace(batch, also={})})
        wrong = lambda b: Outputs(-9 * F.one_hot(b.target, 3).double())  # noqa: E731
        update = self.update(model, network(1, torch.float64))
        update.teachers = {"teacher": wrong}
        for _ in range(10):
            update([batch], Clock())
        factors = update.settings(Clock())["weights"]
        assert factors["kd"] < 0.7
        assert factors["cross_entropy"] > 0.5

    def test_a_window_of_several_batches_is_refused(self):
        update = self.update(network(0, torch.float64), network(1, torch.float64))
        with pytest.raises(RecipeError, match="accumulate to 1"):
            update([self.batch(), self.batch()], Clock())
