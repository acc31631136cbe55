"""The ids 0 and C - 1 are classes of C; -1 and C are none, wherever ids are read."""

import numpy as np
import pytest
import torch

import decoct.functional as F
from decoct.errors import DataError, RecipeError
from decoct.objectives.linear_kd import Head, Labels
from decoct.objectives.refine.base import Lesson, known_targets
from decoct.outputs import Batch, Outputs, TopK
from decoct.tasks.answers.metrics import classification_scores
from decoct.tasks.image_classification import ImageClassification
from decoct.teachers.remote.black_box import class_ids

C = 5
S, T = (torch.randn(3, C, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
HIDDEN, WEIGHT = (torch.randn(n, 4, generator=torch.Generator().manual_seed(n)) for n in (3, C))
LOSSES = {
    "dkd_loss": lambda ids: F.dkd_loss(S, T, ids),
    "nkd_loss": lambda ids: F.nkd_loss(S, T, ids),
    "wsld_loss": lambda ids: F.wsld_loss(S, T, ids),
    "cross_entropy": lambda ids: F.cross_entropy(S, ids),
    "taylor_cross_entropy_loss": lambda ids: F.taylor_cross_entropy_loss(S, ids),
    "balanced_cross_entropy": lambda ids: F.balanced_cross_entropy(S, ids, counts=(3, 2, 2, 1, 1)),
    "linear_kd_loss": lambda ids: F.linear_kd_loss(HIDDEN, Head(WEIGHT), HIDDEN, Head(WEIGHT), labels=Labels(ids)),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_target_next_to_the_classes_is_refused_and_the_outermost_classes_are_taken(loss):
    assert torch.isfinite(LOSSES[loss](torch.tensor([0, C - 1, 2])))
    for wrong in (-1, C):
        with pytest.raises(RecipeError, match=f"target {wrong} lies outside the {C} classes"):
            LOSSES[loss](torch.tensor([0, wrong, 2]))


@pytest.mark.parametrize("part", ["ids", "drawn"])
def test_a_kept_or_drawn_class_next_to_the_classes_is_refused(part):
    for wrong in (-1, C):
        top = TopK.of(T, 2, tail="sample", draws=2, generator=torch.Generator().manual_seed(0))
        assert torch.isfinite(F.top_k_kl_loss(S, top))
        getattr(top, part)[1, 1] = wrong
        with pytest.raises(RecipeError, match=f"kept classes from .*, and there are {C}"):
            F.top_k_kl_loss(S, top)


def test_refinements_take_ids_next_to_the_classes_as_unknown():
    teacher = torch.zeros(4, C)
    batch = Batch({"student": torch.zeros(4, 1)}, torch.tensor([0, C - 1, C, -1]))
    soft, known = known_targets(Lesson("kd", Outputs(teacher)), teacher, batch)
    assert known.tolist() == [True, True, False, False]
    assert torch.equal(soft, torch.eye(C)[[0, C - 1, 0, 0]] * known.unsqueeze(-1))


def test_scores_and_loaders_refuse_labels_next_to_the_classes():
    task = ImageClassification(raw=True, classes=tuple("abcde"))
    inside = torch.tensor([0, C - 1, 2])
    assert torch.equal(task.from_loader((S, inside)).target, inside)
    assert classification_scores(S.double().numpy(), inside.numpy(), "accuracy")["accuracy"] >= 0
    for wrong in (-1, C):
        labels = torch.tensor([0, wrong, 2])
        with pytest.raises(DataError, match=rf"holds \[{wrong}\]; classes are 0 to {C - 1}"):
            task.from_loader((S, labels))
        with pytest.raises(DataError, match=f"the model gives {C} classes"):
            classification_scores(S.double().numpy(), labels.numpy(), "accuracy")


def test_a_black_box_s_number_next_to_the_classes_means_none():
    assert class_ids([0, C - 1, C, -1, np.int64(C)], tuple("abcde")) == [0, C - 1, None, None, None]
