"""StoredTeacher: a soft-label store that answers as a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch

from decoct.artifact import Artifact
from decoct.capture import EVERY
from decoct.data.views import seen_of
from decoct.errors import RecipeError, did_you_mean
from decoct.outputs import Batch, Needs, Outputs, Predictor
from decoct.store.reading import Store
from decoct.teachers.base import Reading, Teacher


class StoredTeacher(Teacher):
    """An artifact of kind "store": what a teacher said once, found by each sample's content and view.

    `verify`: "lazy" checks each shard's SHA-256 when it is first read, "all" every one at the start, "none" none.
    """

    use: ClassVar[str] = "stored"
    not_in_key: ClassVar[tuple[str, ...]] = ("verify",)
    verify: Literal["lazy", "all", "none"] = "lazy"

    def open(
        self,
        subject: Any,
        reading: Reading,
        needs: Needs,
        *,
        device: torch.device | str = "cpu",
        autocast: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> AbstractContextManager[Predictor]:
        """A predictor while the body runs; `subject` is the Artifact. RecipeError for features that are not kept."""
        if not isinstance(subject, Artifact) or subject.kind != "store":
            raise RecipeError(f"a stored teacher is an artifact of kind store, not {subject!r}; make it by step label")
        if needs.gradient:
            raise RecipeError("a term asks for gradients of the teacher's inputs, which a store does not hold")
        kept = subject.meta["features"]
        for path in sorted(needs.features):
            if path not in kept:
                what = "layers: auto, which looks at every layer" if path == EVERY else f"the feature {path!r}"
                raise RecipeError(
                    f"a term asks the stored teacher for {what}; the store keeps {', '.join(kept) or 'no features'}"
                    + ("" if path == EVERY or not kept else f" ({did_you_mean(path, kept)})")
                    + "; name the layers, and label again with features: [...]"
                )
        return self._predictor(subject, reading, needs, device)

    @contextmanager
    def _predictor(
        self, subject: Artifact, reading: Reading, needs: Needs, device: torch.device | str
    ) -> Iterator[Predictor]:
        store = Store.open(subject.folder, verify=self.verify)
        away = torch.device(device).type != "cpu"

        def predict(batch: Batch) -> Outputs:
            outputs = store.read(seen_of(batch), length=reading.length(batch))
            if outputs.features:
                outputs = replace(outputs, features={path: outputs.features[path].float() for path in needs.features})
            return outputs.to(device) if away else outputs

        yield predict
