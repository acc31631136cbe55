"""Made-up outputs and batches for every entry of the catalogue of objectives."""

import torch

import decoct.objectives
from decoct.objectives.base import Probe
from decoct.objectives.criterion import Criterion
from decoct.objectives.kd import KD
from decoct.outputs import Batch, Outputs
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.regression import Regression
from decoct.training.clock import Clock

CATALOGUE = decoct.objectives.CATALOGUE
SIZE, CLASSES = 6, 5
FEATURES = {
    "heads": (2, 5, 3),
    "scores": (2, 5, 5),
    "probabilities": (2, 5, 5),
    "deeper": (5, 4),
    "map": (4, 6, 6),
    "low": (3, 6, 6),
    "tokens": (5, 4),
    "vector": (7,),
}
WIDER = {
    "heads": (2, 5, 4),
    "scores": (3, 5, 5),
    "probabilities": (3, 5, 5),
    "map": (8, 6, 6),
    "low": (5, 3, 3),
    "tokens": (5, 9),
    "deeper": (5, 9),
    "vector": (11,),
}
EXTRA = {
    "balanced_cross_entropy": {"counts": (5, 4, 3, 2, 1), "beta": 0.9},
    "afd": {"student_layers": ("map", "low"), "teacher_layers": ("low", "map")},
    "crd": {"layers": {"vector": "vector"}, "bank": 4096, "dim": 6},
    "head_alignment": {"layers": {"probabilities": "probabilities"}},
    "layer_fusion": {"layers": {"tokens": ("tokens", "deeper")}},
    "localization": {"weights": "weights"},
    "ofd": {"layers": {"map": "map"}, "batch_norm": {"map": "norm"}},
    "review_kd": {"layers": {"map": "map", "low": "low"}, "width": 4},
    "fsp": {"student_layers": ("low", "map"), "teacher_layers": ("low", "map")},
    "sum": {"terms": (KD(weight=0.5), KD(name="again", temperature=2.0))},
    "patient": {"layers": {"tokens": "tokens"}},
    "relation": {"layers": {"heads": "heads"}},
    "attention_mse": {"layers": {"scores": "scores"}},
    "hidden_mse": {"layers": {"tokens": "tokens"}},
    "hidden_cosine": {"layers": {"tokens": "tokens", "vector": "vector"}},
}
NAMES = list(CATALOGUE)
RUNNING = [name for name in NAMES if name not in ("sum", "box_targets")]
"""Those that learn from such outputs; tests/tasks/test_detection.py holds box_targets, which reads boxes."""
REGRESSION = {"regression_kd"}
SCALED = {"afd", "mgd", "ofd", "review_kd", "factor_translator", "focal_global", "feature_discriminator", "crd"}
"""Features are scaled with the logits where they pass through learned layers."""
MAPS = {
    "hierarchical_context",
    "channel_wise",
    "channel_correlation",
    "pearson_feature",
    "nst",
    "focal_global",
    "mgd",
    "factor_translator",
}
REVERSED = {"feature_discriminator"}
"""Its gradient is not that of its value: tests/objectives/test_learned.py holds it."""
ROBUST = {"ard", "rslad"}
CLASSIFICATION = ImageClassification(raw=True, classes=tuple("abcde"))
NUMBERS = Regression(raw=True, target_mean=(0.0,), target_std=(1.0,))


def spec(name, **fields):
    found = CATALOGUE.resolve(name)
    needed = {"layers": {"map": "map", "vector": "vector"}} if "layers" in found.model_fields else {}
    if name in MAPS:
        needed = {"layers": {"map": "map"}}
    if name == "attention_transfer":
        needed = {"layers": {"map": "map", "tokens": "tokens"}}
    return found(**{**needed, **EXTRA.get(name, {}), **fields})


def outputs(seed, name, dtype=torch.float32, shapes=FEATURES, scale=1.0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logits = (scale * draw(SIZE, 1 if name in REGRESSION else CLASSES)).to(dtype)
    features = {key: draw(SIZE, *shape) for key, shape in shapes.items()}
    features["probabilities"] = features["probabilities"].softmax(-1)
    features = {key: (scale * each if name in SCALED else each).to(dtype) for key, each in features.items()}
    channels = shapes["map"][0]
    features |= {"norm@weight": draw(channels).to(dtype), "norm@bias": draw(channels).to(dtype)}
    edges = (scale * draw(SIZE, 3, 4, 5)).to(dtype)
    weights = draw(SIZE, 3, 4).abs().to(dtype)
    heads = {"adversarial": Outputs((scale * draw(SIZE, CLASSES)).to(dtype))} if name in ROBUST else {}
    return Outputs(logits, features=features, values={"edges": edges, "weights": weights}, heads=heads)


def leaves(outputs):
    """The same outputs as leaves that take gradients, and the list of them."""
    logits = outputs.logits.clone().requires_grad_()
    features = {key: each.clone().requires_grad_() for key, each in outputs.features.items()}
    values = {key: each.clone().requires_grad_() for key, each in outputs.values.items()}
    heads = {key: Outputs(each.logits.clone().requires_grad_()) for key, each in outputs.heads.items()}
    found = [logits, *features.values(), *values.values(), *(each.logits for each in heads.values())]
    return Outputs(logits, features=features, values=values, heads=heads), found


def joined(outputs, tensors):
    """Outputs with the tensors of `leaves` put back in their places."""
    given = iter(tensors)
    logits = next(given)
    features, values = ({key: next(given) for key in each} for each in (outputs.features, outputs.values))
    heads = {key: Outputs(next(given)) for key in outputs.heads}
    return Outputs(logits, features=features, values=values, heads=heads)


def batch_for(name, labelled=None):
    generator = torch.Generator().manual_seed(99)
    if name in REGRESSION:
        target = torch.randn(SIZE, 1, generator=generator)
        target = target if labelled is None else torch.where(labelled[:, None], target, torch.nan)
    else:
        target = torch.randint(CLASSES, (SIZE,), generator=generator)
        target = target if labelled is None else torch.where(labelled, target, -100)
    if name == "focal_global":
        corners = torch.rand(SIZE, 3, 2, 2, generator=generator).sort(2).values * 24
        target = {"boxes": corners.flatten(2)}
    keys = torch.randint(1 << 62, (SIZE,), generator=generator).numpy().view("uint64")
    return Batch({"student": torch.zeros(SIZE, 3, 24, 24)}, target=target, labelled=labelled, keys=keys)


def build(objective, name, student, teacher, batch):
    task = NUMBERS if name in REGRESSION else CLASSIFICATION
    torch.manual_seed(0)
    return Criterion.build(objective, Probe(task, batch, student, {"teacher": teacher}, {}))


def run(objective, name, student, teacher, batch):
    return build(objective, name, student, teacher, batch)(student, {"teacher": teacher}, batch, Clock())[0]


def gradients(loss, inputs):
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(x) if each is None else each for x, each in zip(inputs, found)]


def part(outputs, index):
    def cut(tensors):
        return {key: each[index] if len(each) == SIZE else each for key, each in tensors.items()}

    heads = {key: part(each, index) for key, each in outputs.heads.items()}
    return Outputs(outputs.logits[index], features=cut(outputs.features), values=cut(outputs.values), heads=heads)


def part_of_batch(batch, index):
    labelled = None if batch.labelled is None else batch.labelled[index]
    target = batch.target
    target = {key: each[index] for key, each in target.items()} if isinstance(target, dict) else target[index]
    inputs = {"student": batch.inputs["student"][index]}
    return Batch(inputs, target=target, labelled=labelled, keys=batch.keys[index.numpy()])
