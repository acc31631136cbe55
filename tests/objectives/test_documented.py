"""The table of all objectives in the documentation is that of the catalogue."""

from pathlib import Path

from decoct.objectives import CATALOGUE
from decoct.objectives._features import FeatureObjective, LayeredObjective
from decoct.objectives.base import Objective

PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"
AUTO = {"stages": "auto: stages", "embedding": "auto: before the last layer", "none": "layers by name"}
OTHER = {
    "afd": "features (auto: stages), learns",
    "box_targets": "values",
    "ctkd": "logits, learns",
    "fsp": "features (layers by name)",
    "layer_fusion": "features (auto: stages)",
    "localization": "values",
    "sum": "what its terms read",
    "task_loss": "what the task reads",
}


def reads(key: str, found: type[Objective]) -> str:
    if key in OTHER:
        return OTHER[key]
    if issubclass(found, LayeredObjective):
        learns = "" if issubclass(found, FeatureObjective) or key == "ofd" else ", learns"
        return f"features ({AUTO[found.auto]}){', labels' if found.supervised else ''}{learns}"
    if not found.taught:
        return "labels"
    return "logits, labels" if found.supervised else "logits"


def row(key: str) -> str:
    found = CATALOGUE.resolve(key)
    assert issubclass(found, Objective)
    always = found.splittable and key != "ofd"  # its connector has a batch norm by default
    split = "as its terms" if key == "sum" else "yes" if always else "no"
    return f"| `{key}` | {CATALOGUE.summary(key)} | {reads(key, found)} | {split} |"


def test_every_entry_has_its_row():
    expected = [row(key) for key in CATALOGUE]
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    found = [line for line in lines if line.startswith("| `") and line.split("`")[1] in CATALOGUE]
    assert found == expected, "docs/objectives.md needs these rows:\n" + "\n".join(expected)
