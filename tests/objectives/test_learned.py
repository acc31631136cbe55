"""What the learned terms do beside their functions: margins, memories, masks, fusions, reversed gradients."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import decoct as dc
import decoct.functional as F
from decoct.capture import capture
from decoct.errors import RecipeError
from decoct.objectives._keyed import keyed_uniform
from decoct.objectives.base import Probe
from decoct.objectives.criterion import Criterion
from decoct.outputs import Batch, Outputs
from decoct.tasks.image_classification import ImageClassification
from decoct.training.clock import Clock

TASK = ImageClassification(raw=True, classes=tuple("abcde"))


def outputs_of(seed, **features):
    generator = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(6, *size, generator=generator) for name, size in features.items()}
    return Outputs(torch.randn(6, 5, generator=generator), features=made)


def batch(keys=range(10, 16), target=(0, 1, 2, 0, 1, 2)):
    held = None if keys is None else np.array(list(keys), dtype=np.uint64)
    return Batch({"student": torch.zeros(6, 3, 8, 8)}, target=torch.tensor(target), keys=held)


def built(objective, student, teacher, b=None):
    torch.manual_seed(3)
    return Criterion.build(objective, Probe(TASK, b or batch(), student, {"t": teacher}, {}))


def value(criterion, student, teacher, b=None, clock=None):
    return criterion(student, {"t": teacher}, b or batch(), clock or Clock())[0]


class TestOFD:
    paths = {"layer2.1.relu#1@input": "layer2.2.relu#1@input"}

    def test_pre_activations_of_residual_nets_with_the_margin_of_their_batch_norm(self):
        import torchvision

        torch.manual_seed(0)
        big, small = torchvision.models.resnet34(num_classes=5), torchvision.models.resnet18(num_classes=5)
        source = {"layer2.2.relu#1@input": "layer2.2.bn2"}
        nn.init.uniform_(big.layer2[2].bn2.weight)
        nn.init.normal_(big.layer2[2].bn2.bias)
        objective, x = dc.OFD(layers=self.paths, batch_norm=source), torch.randn(2, 3, 32, 32)
        with dc.Distiller(big, small, objective, example=x) as distiller:
            assert distiller.criterion.layers()[0]["adapter"] == "conv 128 to 128"
            network = distiller.criterion.terms[0].networks[0]
            expected = F.ofd_margin(big.layer2[2].bn2.weight, big.layer2[2].bn2.bias)
            assert torch.equal(network.margin, expected)
            small.eval(), distiller.criterion.eval()
            loss, _ = distiller(x)
            with torch.no_grad(), capture(big.eval(), [self.paths["layer2.1.relu#1@input"]]) as theirs:
                big(x)
            with torch.no_grad(), capture(small, list(self.paths)) as own:
                small(x)
            bridged = distiller.criterion.terms[0].bridges[0].student(own["layer2.1.relu#1@input"])
            target = theirs["layer2.2.relu#1@input"]
            assert (target < 0).any()
            assert loss.item() == pytest.approx(F.ofd_loss(bridged, target, expected).item(), rel=1e-5)
            loss.backward()
        assert "terms.0.networks.0.margin" in distiller.criterion.state_dict()
        assert all(parameter.grad is not None for parameter in distiller.criterion.parameters())

    def test_a_path_that_is_no_batch_norm_is_refused(self):
        import torchvision

        big, small = torchvision.models.resnet18(), torchvision.models.resnet18()
        with pytest.raises(ValueError, match=r"'layer2@(weight|bias)': it has the parameters none"):
            dc.Distiller(big, small, dc.OFD(layers={"layer2": "layer2"}), example=torch.randn(2, 3, 32, 32))
        wrong = dc.OFD(layers={"layer2": "layer2"}, batch_norm={"layer2": "layer1.0.bn1"})
        with pytest.raises(RecipeError, match=r"layer1.0.bn1 has weight \[64\]; wanted is the batch norm of 128"):
            dc.Distiller(big, small, wrong, example=torch.randn(2, 3, 32, 32))


class TestCRD:
    student, teacher = outputs_of(1, a=(7,)), outputs_of(2, a=(4, 3, 3))

    def build(self, **fields):
        return built(dc.CRD(layers={"a": "a"}, dim=4, bank=64, **fields), self.student, self.teacher)

    def test_first_value_is_that_of_the_definition_both_ways(self):
        criterion = self.build()
        network = criterion.terms[0].networks[0]
        got = value(criterion, self.student, self.teacher)
        s = nn.functional.normalize(network.embed_own(self.student.features["a"]))
        t = nn.functional.normalize(network.embed_theirs(self.teacher.features["a"].mean((2, 3))))
        off = ~torch.eye(6, dtype=torch.bool)
        expected = F.contrastive_loss(s, t, t, keep=off) + F.contrastive_loss(t, s, s, keep=off)
        assert got.item() == pytest.approx(expected.item(), rel=1e-5)
        got.backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in criterion.parameters())

    def test_a_sample_finds_its_memory_by_its_key_wherever_it_stands(self):
        criterion = self.build(momentum=0.25)
        network = criterion.terms[0].networks[0]
        value(criterion, self.student, self.teacher)
        before = network.own.clone()
        assert network.filled.nonzero().flatten().tolist() == list(range(10, 16))
        assert network.keys[10:16].tolist() == list(range(10, 16))
        moved = outputs_of(5, a=(7,))
        order = [3, 1, 0, 5, 4, 2]
        value(criterion, moved, self.teacher, batch(keys=[10 + i for i in order]))
        fresh = nn.functional.normalize(network.embed_own(moved.features["a"]))
        for position, sample in enumerate(order):
            mixed = 0.25 * before[10 + sample] + 0.75 * fresh[position]
            torch.testing.assert_close(network.own[10 + sample], mixed / mixed.norm())

    def test_another_sample_of_the_same_place_takes_it(self):
        criterion = self.build()
        network = criterion.terms[0].networks[0]
        value(criterion, self.student, self.teacher)
        value(criterion, self.student, self.teacher, batch(keys=[74, 138, 75, 1, 2, (1 << 64) - 1]))
        fresh = nn.functional.normalize(network.embed_own(self.student.features["a"]))
        assert network.keys[10] == 138
        assert network.keys[11] == 75
        assert network.keys[63] == -1
        torch.testing.assert_close(network.own[10], fresh[1])

    def test_eval_writes_nothing_and_the_state_goes_on_where_it_was(self):
        criterion = self.build()
        value(criterion, self.student, self.teacher)
        state = {key: each.clone() for key, each in criterion.state_dict().items()}
        criterion.eval()
        seen = value(criterion, outputs_of(6, a=(7,)), self.teacher, batch(keys=range(30, 36)))
        assert all(torch.equal(each, state[key]) for key, each in criterion.state_dict().items())
        other = self.build()
        value(other, outputs_of(7, a=(7,)), self.teacher)
        other.load_state_dict(state)
        assert value(other.eval(), outputs_of(6, a=(7,)), self.teacher, batch(keys=range(30, 36))).item() == seen.item()
        other.load_state_dict(self.build().state_dict())
        assert torch.isfinite(value(other.train(), self.student, self.teacher))

    def test_labels_of_the_same_class_are_no_negatives(self):
        criterion = self.build(by_class=True)
        network = criterion.terms[0].networks[0]
        got = value(criterion, self.student, self.teacher)
        target = batch().target
        s = nn.functional.normalize(network.embed_own(self.student.features["a"]))
        t = nn.functional.normalize(network.embed_theirs(self.teacher.features["a"].mean((2, 3))))
        keep = target[:, None] != target[None]
        expected = F.contrastive_loss(s, t, t, keep=keep) + F.contrastive_loss(t, s, s, keep=keep)
        assert got.item() == pytest.approx(expected.item(), rel=1e-5)
        with pytest.raises(RecipeError, match="by_class needs one class id"):
            value(criterion, self.student, self.teacher, replace(batch(), target=torch.zeros(6, 1)))

    def test_without_keys_the_memory_is_filled_in_turn(self):
        criterion = self.build()
        network = criterion.terms[0].networks[0]
        for step in range(1, 13):
            value(criterion, self.student, self.teacher, batch(keys=None)).backward()
            assert int(network.filled.sum()) == min(6 * step, 64)
        assert int(network.turn) == 72 % 64

    def test_it_learns(self):
        criterion = self.build()
        features = self.student.features["a"].clone().requires_grad_()
        optimizer = torch.optim.Adam([features, *criterion.parameters()], lr=0.05)
        losses = []
        for _ in range(40):
            loss = value(criterion, Outputs(features={"a": features}), self.teacher)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.7 * losses[0]


class TestMGD:
    def test_the_mask_depends_on_sample_and_step_alone(self):
        whole = keyed_uniform(batch(), 3, 400, torch.device("cpu"))
        index = np.array([4, 0, 2])
        part = replace(batch(), keys=batch().keys[index], inputs={"student": torch.zeros(3, 1)})
        assert torch.equal(keyed_uniform(part, 3, 400, torch.device("cpu")), whole[index])
        assert not torch.equal(keyed_uniform(batch(), 4, 400, torch.device("cpu")), whole)
        assert whole.mean().item() == pytest.approx(0.5, abs=0.03)
        assert len(whole.unique()) > 0.99 * whole.numel()
        assert abs(np.corrcoef(whole.numpy())[np.triu_indices(6, 1)]).max() < 0.2
        alike = keyed_uniform(batch(keys=None), 3, 400, torch.device("cpu"))
        assert torch.equal(alike[0], alike[5])

    def test_the_value_is_the_mean_square_of_what_is_made_from_the_places_left(self):
        student, teacher = outputs_of(1, a=(4, 6, 6)), outputs_of(2, a=(4, 6, 6))
        criterion = built(dc.MGD(layers={"a": "a"}, masked=0.4), student, teacher)
        generator = criterion.terms[0].networks[0].make
        draw = keyed_uniform(batch(), 7, 36, torch.device("cpu")).reshape(6, 1, 6, 6)
        made = generator(torch.where(draw < 0.4, 0.0, student.features["a"]))
        expected = F.hint_loss(made, teacher.features["a"])
        assert value(criterion, student, teacher, clock=Clock(step=7)).item() == pytest.approx(
            expected.item(), rel=1e-6
        )
        assert criterion.splittable


class TestReviewKD:
    def test_deep_features_flow_into_shallow_ones(self):
        """The authors' structure written out for two stages, with the same weights."""
        student = outputs_of(1, deep=(6, 4, 4), shallow=(3, 8, 8))
        teacher = outputs_of(2, deep=(5, 2, 2), shallow=(7, 8, 8))
        pairs = {"shallow": "shallow", "deep": "deep"}
        criterion = built(dc.ReviewKD(layers=pairs, width=4), student, teacher)
        deep, shallow = criterion.terms[0].fusions
        assert [each["student"] for each in criterion.layers()] == ["deep", "shallow"]

        x = deep.enter(student.features["deep"])
        passed = nn.functional.interpolate(x, (2, 2), mode="nearest")
        first = deep.leave(passed)
        y = shallow.enter(student.features["shallow"])
        up = nn.functional.interpolate(passed, (8, 8), mode="nearest")
        share = torch.sigmoid(shallow.attend[0](torch.cat([y, up], 1)))
        second = shallow.leave(y * share[:, 0:1] + up * share[:, 1:2])
        expected = F.hierarchical_context_loss(first, teacher.features["deep"])
        expected = expected + F.hierarchical_context_loss(second, teacher.features["shallow"])
        got = value(criterion, student, teacher)
        assert got.item() == pytest.approx(expected.item(), rel=1e-5)
        got.backward()
        assert all(parameter.grad is not None for parameter in criterion.parameters())

    def test_tokens_and_one_pair_alone(self):
        student, teacher = outputs_of(1, a=(17, 6), b=(4, 2, 2)), outputs_of(2, a=(16, 5), b=(9,))
        criterion = built(dc.ReviewKD(layers={"a": "a", "b": "b"}), student, teacher)
        assert torch.isfinite(value(criterion, student, teacher))
        with pytest.raises(RecipeError, match="layers has 1 pair; a review needs at least two"):
            built(dc.ReviewKD(layers={"a": "a"}), student, teacher)


class TestFactorTranslator:
    student, teacher = outputs_of(1, a=(3, 4, 4)), outputs_of(2, a=(6, 4, 4))

    def test_factors_teach_the_student_and_reconstruction_the_paraphraser(self):
        criterion = built(dc.FactorTranslator(layers={"a": "a"}), self.student, self.teacher)
        network = criterion.terms[0].networks[0]
        factors = network.paraphrase(self.teacher.features["a"])
        assert factors.shape == (6, 3, 4, 4)
        rebuilt = F.hint_loss(network.restore(factors), self.teacher.features["a"])
        apart = F.factor_transfer_loss(network.translate(self.student.features["a"]), factors)
        got = value(criterion, self.student, self.teacher)
        assert got.item() == pytest.approx((rebuilt + apart).item(), rel=1e-6)
        whole = torch.autograd.grad(got, list(network.paraphrase.parameters()))
        alone = torch.autograd.grad(rebuilt, list(network.paraphrase.parameters()))
        for a, b in zip(whole, alone):
            torch.testing.assert_close(a, b)

    def test_warmup_trains_the_paraphraser_alone(self):
        criterion = built(dc.FactorTranslator(layers={"a": "a"}, warmup=0.2), self.student, self.teacher)
        network = criterion.terms[0].networks[0]
        value(criterion, self.student, self.teacher, clock=Clock(progress=0.1)).backward()
        assert all((each.grad == 0).all() for each in network.translate.parameters())
        assert any((each.grad != 0).any() for each in network.paraphrase.parameters())
        value(criterion, self.student, self.teacher, clock=Clock(progress=0.2)).backward()
        assert any((each.grad != 0).any() for each in network.translate.parameters())


class TestAFD:
    def test_attention_is_learned_over_all_pairs(self):
        student, teacher = outputs_of(1, a=(3, 8, 8), b=(6, 4, 4)), outputs_of(2, c=(5, 8, 8), d=(17, 6))
        objective = dc.AFD(student_layers=("a", "b"), teacher_layers=("c", "d"), dim=8)
        criterion = built(objective, student, teacher)
        assert [each["teacher"] for each in criterion.layers()] == ["c", "d"]
        loss = value(criterion, student, teacher)
        loss.backward()
        assert all(parameter.grad is not None for parameter in criterion.parameters())
        assert criterion.terms[0].student_place.grad.abs().sum() > 0
        assert not criterion.splittable

    def test_all_stages_are_taken_by_themselves(self):
        import torchvision

        big, small = torchvision.models.resnet34(num_classes=5), torchvision.models.resnet18(num_classes=5)
        objective = dc.AFD(student_layers="auto", teacher_layers=("layer3", "layer4"))
        with dc.Distiller(big, small, objective, example=torch.randn(2, 3, 64, 64)) as distiller:
            assert distiller.objective.student_layers == ("layer1", "layer2", "layer3", "layer4")
            assert distiller.objective.teacher_layers == ("layer3", "layer4")


class TestLayerFusion:
    def test_widths_are_bridged_and_the_values_added(self):
        student, teacher = outputs_of(1, a=(5, 3), b=(4, 2, 2)), outputs_of(2, c=(5, 4), d=(5, 4), e=(6,), f=(6, 3, 3))
        criterion = built(dc.LayerFusion(layers={"a": ("c", "d"), "b": ("e",)}), student, teacher)
        shown = [each["adapter"] for each in criterion.layers()]
        assert shown[:2] == ["linear 3 to 4, attention"] * 2
        first, second = criterion.terms[0].bridges
        one = F.layer_fusion_loss(first.student(student.features["a"]), [teacher.features["c"], teacher.features["d"]])
        two = F.layer_fusion_loss(second.student(student.features["b"]), [teacher.features["e"]])
        assert value(criterion, student, teacher).item() == pytest.approx((one + two).item(), rel=1e-6)
        with pytest.raises(RecipeError, match=r"teacher c \[6, 5, 4\] and e \[6, 6\]"):
            built(dc.LayerFusion(layers={"a": ("c", "e")}), student, teacher)

    def test_every_block_with_all_of_the_teachers(self):
        from torchvision.models import VisionTransformer

        big, small = (VisionTransformer(16, 8, depth, 2, 8, 16, num_classes=5) for depth in (3, 2))
        with dc.Distiller(big, small, dc.LayerFusion(layers="auto"), example=torch.randn(2, 3, 16, 16)) as distiller:
            theirs = tuple(f"encoder.layers.encoder_layer_{i}" for i in range(3))
            assert distiller.objective.layers == dict.fromkeys(theirs[:2], theirs)


class TestFeatureDiscriminator:
    student, teacher = outputs_of(1, a=(3, 4, 4)), outputs_of(2, a=(5, 7))

    def test_the_student_climbs_where_the_discriminator_descends(self):
        criterion = built(dc.FeatureDiscriminator(layers={"a": "a"}, reversal=0.5), self.student, self.teacher)
        student = self.student.features["a"].clone().requires_grad_()
        network, bridge = criterion.terms[0].networks[0], criterion.terms[0].bridges[0]
        got = value(criterion, Outputs(features={"a": student}), self.teacher)
        mine = torch.autograd.grad(got, [student, *network.parameters()])
        s, t = bridge(student, self.teacher.features["a"])
        plain = F.discriminator_loss(network.score(s), network.score(t))
        theirs = torch.autograd.grad(plain, [student, *network.parameters()])
        torch.testing.assert_close(mine[0], -0.5 * theirs[0])
        for a, b in zip(mine[1:], theirs[1:]):
            torch.testing.assert_close(a, b)
        assert got.item() == plain.item()
        assert criterion.splittable

    def test_two_sides_in_one_descent(self):
        """Trained alone the discriminator wins; against a student that adapts it does not."""
        torch.manual_seed(0)
        theirs = Outputs(features={"a": torch.randn(6, 4) + 2})
        final = {}
        for reversal in (0.0, 1.0):
            student = torch.nn.Parameter(torch.randn(6, 4))
            objective = dc.FeatureDiscriminator(layers={"a": "a"}, reversal=reversal, hidden=8)
            criterion = built(objective, Outputs(features={"a": student}), theirs)
            optimizer = torch.optim.Adam([student, *criterion.parameters()], lr=0.02)
            for _ in range(150):
                loss = value(criterion, Outputs(features={"a": student}), theirs)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            final[reversal] = loss.item()
        assert final[0.0] < 0.1
        assert final[1.0] > 0.3


class TestHeads:
    def test_relation_heads_are_regrouped(self):
        student, teacher = outputs_of(1, q=(5, 8)), outputs_of(2, q=(4, 5, 3))
        criterion = built(dc.Relation(layers={"q": "q"}, heads=2), student, teacher)
        s = student.features["q"].reshape(6, 5, 2, 4).transpose(1, 2)
        t = teacher.features["q"].transpose(1, 2).reshape(6, 5, 2, 6).transpose(1, 2)
        assert value(criterion, student, teacher).item() == pytest.approx(F.relation_loss(s, t).item(), rel=1e-6)
        with pytest.raises(RecipeError, match=r"\[6, 5, 8\] cannot be split in 3 heads"):
            built(dc.Relation(layers={"q": "q"}, heads=3), student, teacher)

    def test_the_right_heads_are_found(self):
        torch.manual_seed(0)
        heads = torch.softmax(3 * torch.randn(6, 3, 4, 4), -1)
        student, teacher = Outputs(features={"a": heads}), Outputs(features={"a": heads[:, [2, 0]]})
        criterion = built(dc.HeadAlignment(layers={"a": "a"}), student, teacher)
        optimizer = torch.optim.Adam(criterion.parameters(), lr=0.3)
        for _ in range(60):
            loss = value(criterion, student, teacher)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert criterion.terms[0].networks[0].heads.weight.argmax(1).tolist() == [2, 0]
        assert loss.item() < 0.05


class TestValues:
    def test_uld_between_models_of_other_classes_and_lengths(self):
        student, teacher = outputs_of(1), Outputs(torch.randn(6, 8))
        got = value(built(dc.ULD(temperature=2.0), student, teacher), student, teacher)
        q, p = (each.logits.div(2).softmax(-1).sort(-1, descending=True).values for each in (student, teacher))
        expected = (nn.functional.pad(q, (0, 3)) - p).abs().sum(-1).mean()
        assert got.item() == pytest.approx(expected.item(), rel=1e-6)
        mask = torch.arange(4) < torch.tensor([1, 2, 3, 4, 4, 2])[:, None]
        longer = Outputs(torch.randn(6, 4, 5), mask=mask)
        shorter = Outputs(torch.randn(6, 3, 7))
        got = value(built(dc.ULD(), longer, shorter), longer, shorter)
        kept = torch.ones(6, 3, dtype=torch.bool)
        assert got.item() == F.uld_loss(longer.logits, shorter.logits, student_mask=mask, teacher_mask=kept).item()
        with pytest.raises(RecipeError, match="uld: the teacher gives no logits"):
            built(dc.ULD(), student, Outputs())

    def test_localization_of_named_values(self):
        torch.manual_seed(1)
        student = Outputs(values={"edges": torch.randn(6, 3, 4, 9)})
        teacher = Outputs(values={"edges": torch.randn(6, 3, 4, 9), "quality": torch.rand(6, 3, 4)})
        got = value(built(dc.Localization(weights="quality"), student, teacher), student, teacher)
        expected = F.localization_loss(
            student.values["edges"].reshape(-1, 9),
            teacher.values["edges"].reshape(-1, 9),
            weight=teacher.values["quality"].flatten(),
        )
        assert got.item() == expected.item()
        with pytest.raises(RecipeError, match="the student gives no values 'edge'; did you mean edges"):
            built(dc.Localization(edges="edge"), student, teacher)
        with pytest.raises(RecipeError, match=r"student edges \[6, 3, 4, 9\] and teacher \[6, 3, 4, 8\]"):
            built(dc.Localization(), student, Outputs(values={"edges": torch.randn(6, 3, 4, 8)}))

    def test_focal_and_global_with_boxes_in_pixels(self):
        student, teacher = outputs_of(1, a=(4, 8, 8)), outputs_of(2, a=(4, 4, 4))
        boxes = torch.tensor([[[0.0, 0.0, 4.0, 4.0], [2.0, 2.0, 7.0, 6.0]]]).expand(6, 2, 4)
        b = replace(batch(), target={"boxes": boxes})
        criterion = built(dc.FocalGlobal(layers={"a": "a"}, delta=0.5), student, teacher, b)
        assert criterion.layers()[0]["adapter"] == "resized to 4×4"
        s = nn.functional.adaptive_avg_pool2d(student.features["a"], (4, 4))
        # The context blocks begin as the identity.
        expected = F.focal_global_loss(s, teacher.features["a"], boxes / 8)
        expected = expected + 0.5 * (s - teacher.features["a"]).square().sum() / 6
        got = value(criterion, student, teacher, b)
        assert got.item() == pytest.approx(expected.item(), rel=1e-5)
        got.backward()
        assert all(parameter.grad is not None for parameter in criterion.parameters())
        with pytest.raises(RecipeError, match="the target holds no boxes"):
            built(dc.FocalGlobal(layers={"a": "a"}), student, teacher)
