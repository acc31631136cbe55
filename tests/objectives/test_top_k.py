"""Objectives that hear a teacher's largest probabilities alone, and those that cannot."""

import pytest
import torch

import decoct.functional as F
from decoct.errors import RecipeError
from decoct.objectives.adaptive_kl import AdaptiveKL
from decoct.objectives.base import Probe
from decoct.objectives.criterion import Criterion
from decoct.objectives.ctkd import CTKD
from decoct.objectives.dkd import DKD
from decoct.objectives.forward_kl import ForwardKL
from decoct.objectives.hint import Hint
from decoct.objectives.kd import KD
from decoct.objectives.refine.confidence import ConfidenceFilter
from decoct.objectives.refine.smooth import TeacherSmoothing
from decoct.objectives.soft_cross_entropy import SoftCrossEntropy
from decoct.objectives.uld import ULD
from decoct.outputs import Batch, Outputs, TopK
from decoct.tasks.image_classification import ImageClassification
from decoct.teachers.classes import align
from decoct.training.clock import Clock

TASK = ImageClassification(raw=True, classes=tuple("abcde"))
TARGET = torch.tensor([0, 1, 2, 3, 4, 0])


def logits(seed, n=6, c=5):
    return torch.randn(n, c, generator=torch.Generator().manual_seed(seed))


def value(objective, student, teacher, labelled=None, known=None):
    batch = Batch({"student": torch.zeros(6, 1)}, TARGET, labelled)
    made = Criterion.build(objective, Probe(TASK, batch, student, {"t": teacher}, {}, known or {}))
    return made(student, {"t": teacher}, batch, Clock())[0]


@pytest.mark.parametrize(
    ("objective", "plain"),
    [
        (KD(temperature=2.0), lambda s, top: 4 * F.top_k_kl_loss(s, top, temperature=2.0)),
        (KD(), lambda s, top: 16 * F.top_k_kl_loss(s, top, temperature=4.0)),
        (ForwardKL(), lambda s, top: F.top_k_kl_loss(s, top)),
        (SoftCrossEntropy(), lambda s, top: F.top_k_cross_entropy(s, top)),
    ],
)
@pytest.mark.parametrize("tail", ["bucket", "uniform"])
def test_term_is_the_function(objective, plain, tail):
    s, top = logits(0), TopK.of(logits(1), 2, tail=tail, temperatures=(1.0, 2.0))
    torch.testing.assert_close(value(objective, Outputs(s), Outputs(top)), plain(s, top))
    labelled = torch.tensor([True, True, False, True, False, False])
    got = value(objective.replace(on="labelled"), Outputs(s), Outputs(top), labelled)
    torch.testing.assert_close(got, plain(s[labelled], top.each(lambda each: each[labelled])))


@pytest.mark.parametrize("objective", [KD(), ForwardKL(temperature=2.0), SoftCrossEntropy()])
def test_all_classes_kept_is_the_whole_teacher(objective):
    s, t = logits(0), logits(1)
    for tail in ("bucket", "uniform"):
        got = value(objective, Outputs(s), Outputs(TopK.of(t, 5, tail=tail)))
        torch.testing.assert_close(got, value(objective, Outputs(s), Outputs(t)))


@pytest.mark.parametrize(
    "objective", [AdaptiveKL(), DKD(), CTKD(), ULD(), KD(temperature=1.0, refine=(ConfidenceFilter(),))]
)
def test_others_say_what_to_do_or_hear_a_uniform_tail(objective):
    s, t = Outputs(logits(0)), logits(1)
    for tail in ("bucket", "sample"):
        with pytest.raises(RecipeError, match=f"{objective.use}.*2 largest of 5 .*tail: {tail}.*Label with tail: unif"):
            value(objective, s, Outputs(TopK.of(t, 2, tail=tail, draws=2)))
    top = TopK.of(t, 2, tail="uniform")
    torch.manual_seed(0)
    got = value(objective, s, Outputs(top))
    torch.manual_seed(0)
    torch.testing.assert_close(got, value(objective, s, Outputs(top.spread())))


def test_what_needs_all_logits_is_refused_before_training():
    s, t = Outputs(logits(0)), logits(1)
    with pytest.raises(RecipeError, match=r"standardize is true.*2 largest of 5"):
        value(KD(standardize=True), s, Outputs(TopK.of(t, 2)))
    with pytest.raises(RecipeError, match=r"temperature is 4.*random draws"):
        value(KD(), s, Outputs(TopK.of(t, 2, tail="sample", draws=2)))
    with pytest.raises(RecipeError, match="targets for 6 classes"):
        value(KD(), s, Outputs(TopK.of(logits(1, c=6), 2)))
    with pytest.raises(RecipeError, match=r"no last layer|embedding|layers"):
        value(Hint(), s, Outputs(TopK.of(t, 2)))


def test_a_refinement_may_follow_a_uniform_tail():
    s, top = Outputs(logits(0)), TopK.of(logits(1), 2, tail="uniform")
    objective = KD(refine=(TeacherSmoothing(amount=0.2),))
    torch.testing.assert_close(value(objective, s, Outputs(top)), value(objective, s, Outputs(top.spread())))


def test_classes_in_another_order_and_a_student_with_more():
    s, t = logits(0), logits(1)
    for tail in ("bucket", "sample"):
        top = TopK.of(t, 2, tail=tail, draws=3, generator=torch.Generator().manual_seed(0))
        outputs = align("edcba", "abcde")(lambda batch, top=top: Outputs(top))(None)
        got = value(ForwardKL(), Outputs(s), outputs)
        torch.testing.assert_close(got, F.top_k_kl_loss(s.flip(-1), top))
    less = TopK.of(t[:, :3], 2)
    alignment = align("eca", "abcde")
    outputs = alignment(lambda batch: Outputs(less))(None)
    got = value(ForwardKL(), Outputs(s), outputs, known={"t": alignment.known})
    torch.testing.assert_close(got, F.top_k_kl_loss(s[:, [4, 2, 0]], less))
    with pytest.raises(RecipeError, match=r"2 largest of 5.*student has 4"):
        align("abcde", "abcd")(lambda batch: Outputs(TopK.of(t, 2)))(None)
