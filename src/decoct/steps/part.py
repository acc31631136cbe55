"""Part: a further model of an artifact that holds several, as an artifact of its own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import ClassVar

from decoct.artifact import MANIFEST, Artifact, writing
from decoct.errors import RecipeError, did_you_mean
from decoct.steps.base import Context, Inputs, Step
from decoct.steps.learning.saving import PARTS


class Part(Step):
    """Takes a further model out of an artifact: a peer of mutual, a generation of born_again, an assistant.

    `part`: the name of the part there.
    """

    use: ClassVar[str] = "part"
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": ("model",)}

    part: str

    def run(self, inputs: Inputs, context: Context) -> Artifact:
        whole = inputs["model"]
        names = sorted(each.name for each in (whole.folder / PARTS).glob("*") if each.is_dir())
        if self.part not in names:
            raise RecipeError(f"part is {self.part!r} of {whole.name}; {did_you_mean(self.part, names)}")
        found = Artifact.load(whole.folder / PARTS / self.part)
        with writing(
            context.folder,
            kind=found.kind,
            name=context.name,
            key=context.key,
            lineage=context.lineage,
            meta=found.meta,
        ) as draft:
            shutil.copytree(found.folder, draft.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
            draft.scores.update(found.scores)
        return Artifact.load(context.folder)
