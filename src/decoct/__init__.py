"""decoct: a large trained model in, a small fast one out, and the proof of what it cost.

Every Spec of every catalogue stands here under its class name (`decoct.KD`, `decoct.Train`), beside the functions of
the public surface. Nothing heavy is imported until a name is used; before that dependencies are told to report nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

from decoct.network import switch_off_reports

switch_off_reports()

__version__ = "0.1.0"

_SURFACE = {
    "Artifact": "decoct.artifact:Artifact",
    "Augment": "decoct.tasks.inputs.augment:Augment",
    "Batch": "decoct.outputs:Batch",
    "Budget": "decoct.training.budget:Budget",
    "Catalogue": "decoct.spec:Catalogue",
    "Clock": "decoct.training.clock:Clock",
    "Data": "decoct.data.base:Data",
    "GivenInput": "decoct.tasks.inputs.given_inputs:GivenInput",
    "Column": "decoct.tasks.inputs.columns:Column",
    "DecoctError": "decoct.errors:DecoctError",
    "Distiller": "decoct.api.distill:Distiller",
    "Interface": "decoct.models.base:Interface",
    "Limits": "decoct.steps.limits:Limits",
    "Model": "decoct.models.base:Model",
    "Needs": "decoct.outputs:Needs",
    "Objective": "decoct.objectives.base:Objective",
    "Outputs": "decoct.outputs:Outputs",
    "Recipe": "decoct.recipe.recipe:Recipe",
    "Scheme": "decoct.training.compression:Scheme",
    "Schedule": "decoct.training.schedules:Schedule",
    "Spec": "decoct.spec:Spec",
    "Step": "decoct.steps.base:Step",
    "Stop": "decoct.training.stopping:Stop",
    "Target": "decoct.targets.base:Target",
    "Task": "decoct.tasks.base:Task",
    "Teacher": "decoct.teachers.base:Teacher",
    "Term": "decoct.objectives.base:Term",
    "Views": "decoct.data.views:Views",
    "allow_plugin": "decoct.spec:allow_plugin",
    "benchmark": "decoct.api.export:benchmark",
    "distill": "decoct.api.distill:distill",
    "export": "decoct.api.export:export",
    "functional": "decoct.functional",
    "label": "decoct.api.label:label",
    "load": "decoct.api.load:load",
    "prune": "decoct.api.prune:prune",
}

ROOMS = (
    "data",
    "models",
    "models.estimators",
    "objectives",
    "objectives.balance",
    "objectives.refine",
    "pruning",
    "quantization",
    "quantization.aware",
    "rewriting",
    "sharing",
    "steps",
    "steps.compressing.recovery",
    "store.codecs",
    "targets",
    "tasks",
    "tasks.answers",
    "tasks.inputs",
    "tasks.inputs.tokenizers",
    "tasks.mixing",
    "teachers",
    "teachers.combinations",
    "training",
    "training.attacks",
    "training.optimizers",
)
"""Packages that hold a CATALOGUE."""


def _names() -> dict[str, str]:
    names = dict(_SURFACE)
    for room in ROOMS:
        for target in importlib.import_module(f"decoct.{room}").CATALOGUE.values():
            names[target.partition(":")[2]] = target
    return names


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(_names())
    target = _SURFACE.get(name) or (None if name.startswith("_") else _names().get(name))
    if target is None:
        raise AttributeError(f"module 'decoct' has no attribute {name!r}")
    module, _, attribute = target.partition(":")
    found = importlib.import_module(module)
    value = getattr(found, attribute) if attribute else found
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*_names(), "__version__"})
