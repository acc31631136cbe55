"""Boosted trees of XGBoost and LightGBM, read from the files that these write; neither library is needed for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from decoct.artifact import parse_json, understood
from decoct.errors import DataError, ResourceError
from decoct.models.estimators.base import Link
from decoct.models.estimators.trees import Tree

OBJECTIVES: Mapping[str, Link] = {
    "binary:logistic": "softmax",
    "binary:logitraw": "softmax",
    "multi:softprob": "softmax",
    "multi:softmax": "softmax",
    "reg:squarederror": "identity",
    "reg:absoluteerror": "identity",
    "reg:pseudohubererror": "identity",
    "binary": "softmax",
    "multiclass": "softmax",
    "regression": "identity",
    "regression_l1": "identity",
    "huber": "identity",
    "fair": "identity",
    "quantile": "identity",
}
"""Objectives of both libraries whose raw scores are logits, or the numbers themselves."""
CATEGORICAL, DEFAULT_LEFT = 1, 2
"""Bits of LightGBM's decision_type; the next two say what counts as missing."""


@dataclass(frozen=True)
class Boosted:
    """Trees as one ensemble: `base` `[columns]` is added to what they say, `scale` multiplies both; one column of a
    classifier means two classes. `columns`: the names of what it reads, empty where it has none; `width` how many."""

    trees: list[Tree]
    base: np.ndarray
    link: Link
    columns: tuple[str, ...]
    width: int
    scale: float = 1.0

    @property
    def outputs(self) -> int:
        """How many classes it tells apart, or numbers it predicts."""
        return 2 if self.link == "softmax" and len(self.base) == 1 else len(self.base)


def read_xgboost(file: Path) -> Boosted:
    """The trees of a model that XGBoost saved, `save_model("FILE.json")` or `.ubj` (which needs xgboost).

    As its scikit-learn interface predicts, up to the best iteration where training stopped early.
    """
    text = file.read_bytes() if file.suffix == ".json" else _as_json(file)
    content = parse_json(text, str(file), dict[str, Any], error=DataError)
    with understood(file, error=DataError):
        return _of_xgboost(content["learner"], file)


def _as_json(file: Path) -> bytes:
    try:
        import xgboost
    except ImportError:
        raise ResourceError(
            f"{file}: a .ubj is read with xgboost; pip install xgboost, or save it as JSON: save_model('MODEL.json')"
        ) from None
    booster = xgboost.Booster()
    try:
        booster.load_model(str(file))
    except xgboost.core.XGBoostError as error:
        raise DataError(f"{file}: no model of XGBoost ({str(error).strip().splitlines()[-1][:200]})") from None
    return bytes(booster.save_raw("json"))


def _of_xgboost(learner: Mapping[str, Any], file: Path) -> Boosted:
    objective, booster = learner["objective"]["name"], learner["gradient_booster"]
    if booster["name"] != "gbtree":
        raise DataError(f"{file}: its booster is {booster['name']}; gbtree is read")
    link = _link(objective, file)
    settings, model = learner["learner_model_param"], booster["model"]
    width = max(1, int(settings["num_class"]), int(settings.get("num_target", 1)))
    found = parse_json(f"[{settings['base_score'].strip('[]')}]", str(file), list[float | int], error=DataError)
    base = np.asarray(found * (width if len(found) == 1 else 1), float)
    if objective == "binary:logistic":
        base = np.log(base / (1 - base))
    trees, groups = model["trees"], model["tree_info"]
    best = learner.get("attributes", {}).get("best_iteration")
    if best is not None:
        kept = model["iteration_indptr"][int(best) + 1]
        trees, groups = trees[:kept], groups[:kept]
    made = [_xgboost_tree(each, group, width, file) for each, group in zip(trees, groups)]
    names = tuple(map(str, learner.get("feature_names") or ()))
    return Boosted(made, base, link, names, int(settings["num_feature"]))


def _xgboost_tree(tree: Mapping[str, Any], column: int, width: int, file: Path) -> Tree:
    if any(tree.get("split_type", ())):
        raise DataError(f"{file}: splits on categories are not read; train it on numbers")
    left = np.asarray(tree["left_children"], np.int64)
    condition = np.asarray(tree["split_conditions"], np.float32)
    value = np.zeros((len(left), width))
    value[:, column] = np.where(left < 0, condition, 0)
    return Tree(
        feature=np.asarray(tree["split_indices"], np.int64),
        threshold=np.nextafter(condition, np.float32(-np.inf)).astype(float),  # left where x < condition
        left=left,
        right=np.asarray(tree["right_children"], np.int64),
        missing_left=np.asarray(tree["default_left"], bool),
        value=value,
    )


def read_lightgbm(file: Path) -> Boosted:
    """The trees of a model that LightGBM saved, `save_model("FILE.txt")`."""
    text = file.read_text(encoding="utf-8", errors="replace")
    head, *blocks = text.partition("\nend of trees")[0].split("\nTree=")
    settings = _lines(head)
    if not head.startswith("tree") or "max_feature_idx" not in settings:
        raise DataError(f"{file}: no model of LightGBM; save it with booster.save_model('MODEL.txt')")
    with understood(file, error=DataError):
        objective, *options = settings.get("objective", "").split()
        link, width = _link(objective, file), int(settings["num_tree_per_iteration"])
        told = dict(each.partition(":")[::2] for each in options)
        if "sqrt" in told:
            raise DataError(f"{file}: reg_sqrt is not read; train it without")
        trees = [_lightgbm_tree(_lines(each), number % width, width, file) for number, each in enumerate(blocks)]
        scale = float(told.get("sigmoid", 1)) if objective == "binary" else 1.0
        if "average_output" in head.split("\n"):
            scale /= len(trees) / width
        names = tuple(settings.get("feature_names", "").split())
        return Boosted(trees, np.zeros(width), link, names, int(settings["max_feature_idx"]) + 1, scale)


def _lines(block: str) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in block.split("\n") if "=" in line)


def _lightgbm_tree(said: Mapping[str, str], column: int, width: int, file: Path) -> Tree:
    """Inner nodes come first, then the leaves; a child -k is leaf k - 1."""
    leaves = _numbers(said["leaf_value"])
    inner = len(leaves) - 1
    count = inner + len(leaves)
    kinds = _numbers(said.get("decision_type", ""))[:inner].astype(int)
    if (kinds & CATEGORICAL).any():
        raise DataError(f"{file}: splits on categories are not read; train it on numbers")
    missing = (kinds >> 2) & 3
    if (missing == 1).any():
        raise DataError(f"{file}: zero_as_missing is not read; train it without")
    thresholds = _numbers(said.get("threshold", ""))[:inner]
    children = [_numbers(said.get(name, ""))[:inner].astype(np.int64) for name in ("left_child", "right_child")]
    end = np.full(len(leaves), -1)
    left, right = (np.concatenate([np.where(each < 0, inner + ~each, each), end]) for each in children)
    value = np.zeros((count, width))
    value[inner:, column] = leaves
    padding = np.zeros(len(leaves))
    goes_left = np.where(missing == 2, (kinds & DEFAULT_LEFT) > 0, thresholds >= 0)  # else a missing number is a 0
    return Tree(
        feature=np.concatenate([_numbers(said.get("split_feature", ""))[:inner], padding]).astype(np.int64),
        threshold=np.concatenate([thresholds, padding]),
        left=left,
        right=right,
        missing_left=np.concatenate([goes_left, padding]).astype(bool),
        value=value,
    )


def _numbers(text: str) -> np.ndarray:
    return np.array([float(each) for each in text.split()])


def _link(objective: str, file: Path) -> Link:
    if objective not in OBJECTIVES:
        raise DataError(f"{file}: its objective is {objective or 'not said'}; those read are {_listed(OBJECTIVES)}")
    return OBJECTIVES[objective]


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(names)
