"""Tiny recipes whose losses are recorded: each lesson once plainly and, where it can be, in other ways."""

from collections.abc import Callable, Mapping
from typing import Any

from golden_data import KEPT

LEARN: dict[str, Any] = {"budget": {"steps": 6}, "batch_size": 12, "log_every": 1}
SGD: dict[str, Any] = {"use": "sgd", "lr": 0.05, "momentum": 0.9}
WAYS: Mapping[str, dict[str, Any]] = {
    "": {},
    "_accumulated": {"accumulate": 2, "batch_size": 6},
    "_bf16": {"precision": "bf16"},
}
"""What each lesson is learned with, by the end of its name."""
WHOLE = tuple(way for way in WAYS if way != "_accumulated")
"""The ways of a lesson that relates the samples of a batch: it cannot be cut into parts."""
TWO_PROCESSES = ("image", "text")
"""The recipes that are run in two processes too."""


def lesson(name: str, inputs: Mapping[str, str], ways: tuple[str, ...] = tuple(WAYS), **settings: Any) -> list[dict]:
    """One distill step for each way."""
    step = {"use": "distill", "inputs": dict(inputs), **LEARN, **settings}
    return [{**step, **WAYS[way], "name": f"{name}{way}"} for way in ways]


def trained(name: str, model: str, **settings: Any) -> dict[str, Any]:
    """A train step."""
    return {"use": "train", "name": name, "inputs": {"model": model}, **LEARN, **settings}


def recipe(task: dict, data: dict, models: dict, *steps: dict | list[dict]) -> dict[str, Any]:
    """The recipe of these parts."""
    flat = [each for found in steps for each in (found if isinstance(found, list) else [found])]
    return {"version": 1, "seed": 3, "task": task, "data": data, "models": models, "steps": flat}


def image() -> dict[str, Any]:
    """The usual: KD and cross-entropy on augmented digits, of which some have labels; temperature by a schedule."""
    objective = [
        {"use": "kd", "weight": 0.9, "temperature": {"use": "cosine", "start": 4.0, "end": 2.0}},
        {"use": "cross_entropy", "weight": 0.1, "label_smoothing": 0.1},
    ]
    models = {"large": {"use": "small_resnet", "width": 4}, "small": {"use": "mlp", "hidden": [8]}}
    return recipe(
        {"use": "image_classification", "augment": {"crop": 1}},
        {"use": "digits", "limit": 80},
        models,
        trained("teacher", "large"),
        lesson("student", {"model": "small", "teacher": "teacher"}, objective=objective, labels=40, max_grad_norm=1.0),
        trained("mixed", "small", mix={"use": "mixup", "alpha": 0.4}, optimizer=SGD),
    )


def words(name: str, layers: int) -> dict[str, Any]:
    """A transformer of a few numbers, without dropout, whose attention can be seen."""
    config: dict[str, Any] = {"model_type": name, "hidden_size": 8, "num_hidden_layers": layers}
    config |= {"num_attention_heads": 2, "intermediate_size": 8}
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return {"use": "transformers", "config": config, "attention": "eager"}


def text() -> dict[str, Any]:
    """Texts of unlike length; a transformer with one tokenizer teaches a recurrent net with another."""
    task = {"use": "text_classification", "max_length": 12, "tokenizer": {"use": "wordpiece", "size": 60}}
    other = {"teacher_max_length": 10, "teacher_tokenizer": {"use": "wordpiece", "size": 80}}
    small = {"use": "bilstm", "embedding": 4, "hidden": 4, "dropout": 0.0}
    objective = [{"use": "kd", "weight": 0.5, "temperature": 2.0}, {"use": "task_loss", "weight": 0.5}]
    return recipe(
        {**task, **other},
        {"use": "tsv", "path": "texts.tsv", "limit": KEPT},
        {"large": words("bert", 2), "small": small},
        trained("teacher", "large", side="teacher"),
        lesson("student", {"model": "small", "teacher": "teacher"}, objective=objective),
    )


def attention() -> dict[str, Any]:
    """Hidden states, attention maps and positions weighted by attention, where texts are of unlike length."""
    layer = "bert.encoder.layer.{}".format
    maps = f"{layer(0)}.attention.self[1]", f"{layer(1)}.attention.self[1]"
    objective = [
        {"use": "hidden_mse", "layers": {layer(0): layer(1)}, "refine": [{"use": "attention"}]},
        {"use": "head_alignment", "weight": 1000.0, "layers": {maps[0]: maps[1]}},
        {"use": "task_loss", "weight": 0.1},
    ]
    return recipe(
        {"use": "text_classification", "max_length": 12, "tokenizer": {"use": "wordpiece", "size": 60}},
        {"use": "tsv", "path": "texts.tsv", "limit": KEPT},
        {"large": words("bert", 2), "small": words("bert", 1)},
        trained("teacher", "large"),
        lesson("student", {"model": "small", "teacher": "teacher"}, objective=objective),
    )


def table() -> dict[str, Any]:
    """Trees teach a net on a table with a category and missing numbers."""
    objective = [
        {"use": "dkd", "weight": 0.5, "temperature": 2.0},
        {"use": "balanced_cross_entropy", "weight": 0.5},
    ]
    return recipe(
        {"use": "tabular_classification"},
        {"use": "csv", "path": "table.csv", "target": "kind", "categorical": ["colour"], "drop": ["price"]}
        | {"limit": KEPT},
        {"small": {"use": "mlp", "hidden": [8]}},
        {"use": "train_estimator", "name": "trees", "estimator": {"use": "gradient_boosting", "max_iter": 5}},
        lesson("student", {"model": "small", "teacher": "trees"}, objective=objective, optimizer=SGD),
    )


def regression() -> dict[str, Any]:
    """Numbers to predict, of which some are not known."""
    objective = [{"use": "regression_kd", "weight": 0.5}, {"use": "task_loss", "weight": 0.5}]
    data = {"use": "csv", "path": "table.csv", "kind": "regression", "target": "price", "categorical": ["colour"]}
    return recipe(
        {"use": "regression"},
        {**data, "drop": ["kind"], "limit": KEPT, "labels": 32},
        {"large": {"use": "mlp", "hidden": [16, 16]}, "small": {"use": "mlp", "hidden": [8]}},
        trained("teacher", "large"),
        lesson("student", {"model": "small", "teacher": "teacher"}, objective=objective),
    )


def features() -> dict[str, Any]:
    """Features, attention and relations: with refinements, with balances, with layers chosen by themselves."""
    kd = {"use": "kd", "weight": 0.9, "refine": [{"use": "correct"}, {"use": "confidence", "at_least": 0.2}]}
    maps = [
        {**kd, "name": "logits"},
        {"use": "cross_entropy", "weight": 0.1},
        {"use": "hint", "weight": 0.3, "layers": "auto", "adapter": "linear"},
        {"use": "attention_transfer", "weight": 10.0, "layers": {"layer1": "layer1", "layer3": "layer3"}},
    ]
    relations = [
        {"use": "dist", "weight": 0.5},
        {"use": "rkd_distance", "weight": 1.0, "layers": "auto"},
        {"use": "similarity_preserving", "weight": 10.0, "layers": {"layer3": "layer3"}},
        {"use": "crd", "weight": 0.1, "layers": "auto", "bank": 32},
    ]
    balance = {"use": "loss_ratio", "period": 2}
    norms = {"use": "sum", "terms": maps[1:3], "balance": {"use": "gradnorm"}}
    inputs = {"model": "small", "teacher": "teacher"}
    return recipe(
        {"use": "image_classification"},
        {"use": "digits", "limit": 80},
        {"large": {"use": "small_resnet", "width": 4}, "small": {"use": "small_resnet", "width": 2}},
        trained("teacher", "large", budget={"steps": 20}),
        lesson("maps", inputs, objective={"use": "sum", "terms": maps, "balance": balance}),
        lesson("learned", inputs, objective={"use": "sum", "terms": maps, "balance": {"use": "uncertainty"}}),
        lesson("relations", inputs, WHOLE, objective=relations),
        lesson("gradients", inputs, ("",), objective=norms),
    )


def several() -> dict[str, Any]:
    """Two teachers that know different classes, joined to one and heard one by one."""
    low, high = [str(each) for each in range(6)], [str(each) for each in range(4, 10)]
    by_term = [
        {"use": "kd", "name": "kd_low", "teacher": "low", "weight": 0.45, "temperature": 2.0},
        {"use": "reverse_kl", "name": "kl_high", "teacher": "high", "weight": 0.45},
        {"use": "cross_entropy", "weight": 0.1},
    ]
    joined = [{"use": "kd", "weight": 0.9, "temperature": 2.0}, {"use": "cross_entropy", "weight": 0.1}]
    inputs = {"model": "small", "low": "low", "high": "high"}
    return recipe(
        {"use": "image_classification"},
        {"use": "digits", "limit": 80},
        {"large": {"use": "small_resnet", "width": 2}, "small": {"use": "mlp", "hidden": [8]}},
        {"use": "train_classes", "name": "low", "inputs": {"model": "large"}, "classes": low, **LEARN},
        {"use": "train_classes", "name": "high", "inputs": {"model": "large"}, "classes": high, **LEARN},
        lesson("joined", inputs, objective=joined, combine={"use": "ensemble", "weights": "confidence"}, labels=40),
        lesson("by_term", inputs, objective=by_term, labels=40),
    )


def methods() -> dict[str, Any]:
    """Steps that train in ways of their own: peers, averages, exits, generations, assistants, attacks."""
    attack = {"use": "pgd", "epsilon": 1.0, "step": 0.5, "steps": 2, "high": 16}
    both = {"model": "small", "teacher": "teacher"}
    ctkd = [{"use": "ctkd", "weight": 0.5}, {"use": "cross_entropy", "weight": 0.5}]
    return recipe(
        {"use": "image_classification", "augment": {"crop": 1}},
        {"use": "digits", "limit": 80, "labels": 40},
        {"small": {"use": "small_resnet", "width": 2}, "peer": {"use": "mlp", "hidden": [8]}},
        trained("teacher", "small"),
        {"use": "mutual", "name": "peers", "inputs": {"model": "small", "peer": "peer"}, **LEARN},
        {"use": "ema_distill", "name": "average", "inputs": {"model": "small"}, **LEARN},
        {"use": "self_distill", "name": "exits", "inputs": {"model": "small"}, "exits": ["layer1"], **LEARN},
        {"use": "born_again", "name": "again", "inputs": {"model": "small"}, "generations": 1, **LEARN},
        {"use": "assistants", "name": "assisted", "inputs": {"model": "peer", "teacher": "teacher"}, **LEARN}
        | {"assistants": [{"use": "mlp", "hidden": [6]}]},
        {"use": "adversarial_distill", "name": "robust", "inputs": both, "attack": attack, **LEARN},
        {"use": "meta_distill", "name": "meta", "inputs": both, "objective": ctkd, "tune": ["weights"], **LEARN},
        {"use": "prune", "name": "pruned", "inputs": {"model": "teacher", "teacher": "teacher"}, **LEARN}
        | {"scheme": {"use": "channels", "ratio": 0.5, "round_to": 1}},
        {"use": "qat", "name": "integers", "inputs": {"model": "teacher", "teacher": "teacher"}, **LEARN},
    )


RECIPES: Mapping[str, Callable[[], dict[str, Any]]] = {
    each.__name__: each for each in (image, text, attention, table, regression, features, several, methods)
}
