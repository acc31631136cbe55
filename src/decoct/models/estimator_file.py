"""EstimatorFile: boosted trees or a model of scikit-learn that another program fitted and saved."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from decoct.artifact import sha256
from decoct.errors import DataError, RecipeError, ResourceError
from decoct.models.base import Interface, Model, OutsideModel
from decoct.models.boosted import Boosted, read_lightgbm, read_xgboost
from decoct.models.brought import Brought
from decoct.models.checks import require_kind
from decoct.models.estimators.base import TINY, Head
from decoct.models.estimators.trees import TreeEnsemble

if TYPE_CHECKING:
    from collections.abc import Callable

XGBOOST, LIGHTGBM, SKOPS = (".json", ".ubj"), (".txt", ".lgb"), (".skops",)
ENDINGS = (*XGBOOST, *LIGHTGBM, *SKOPS)


class EstimatorFile(OutsideModel):
    """A fitted model of a table that answers as a teacher; it is not trained further, and has no layers to tap.

    `path`: a file of XGBoost (save_model, `.json` or `.ubj`), of LightGBM (save_model, `.txt`), or of scikit-learn as
    skops writes it (`.skops`). Pickles are not read. It reads the columns of the data as they are, found by their names
    where the file has some. `labels`: the names of its classes in their order, where these are no numbers in the data.
    """

    use: ClassVar[str] = "estimator"
    positional: ClassVar[tuple[str, ...]] = ("path",)
    reads_rows: ClassVar[bool] = True
    path: Path
    labels: tuple[str, ...] = Field(default=(), exclude_if=lambda value: not value)

    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        require_kind(interface, self.use, "tabular")
        found = self._read()
        return _ensemble(found) if isinstance(found, Boosted) else Fitted(found)

    def brings(self) -> Brought:
        found = self._read()
        if isinstance(found, Boosted):
            count = found.outputs if found.link == "softmax" else 0
            names, columns, width = [f"LABEL_{number}" for number in range(count)], found.columns, found.width
        else:
            names = [str(each) for each in getattr(found, "classes_", ())]
            columns = tuple(map(str, getattr(found, "feature_names_in_", ())))
            width = int(found.n_features_in_)
        if self.labels and len(self.labels) != len(names):
            raise RecipeError(f"labels: {len(self.labels)} names, and {self.path} has {len(names)} classes")
        return Brought(str(self.path), self.labels or tuple(names), columns=columns, width=width)

    def standalone(self, interface: Interface) -> Model:
        return self

    def fingerprint(self) -> str:
        return sha256(self._file())

    def _file(self) -> Path:
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file; check `path`")
        if self.path.suffix not in ENDINGS:
            raise RecipeError(f"path: {self.path.name} is of no known kind; allowed: {', '.join(ENDINGS)}")
        return self.path

    def _read(self) -> Any:
        file = self._file()
        if file.suffix in SKOPS:
            return _of_skops(file)
        read: Callable[[Path], Boosted] = read_xgboost if file.suffix in XGBOOST else read_lightgbm
        return read(file)


def _ensemble(found: Boosted) -> nn.Module:
    trees = [replace(each, value=found.scale * each.value) for each in found.trees]
    return TreeEnsemble(trees, found.scale * found.base, Head(found.link, found.outputs))


def _of_skops(file: Path) -> Any:
    """The fitted estimator; DataError where the file holds types that are not known to be harmless."""
    try:
        import skops.io
    except ImportError:
        raise ResourceError(f"{file} is read with skops; pip install skops") from None
    try:
        strange = skops.io.get_untrusted_types(file=str(file))
        if strange:
            raise DataError(
                f"{file}: holds {', '.join(map(str, strange[:5]))}, which skops does not know to be harmless; give a "
                "model of scikit-learn's own classes, or convert it with skl2onnx and give the ONNX file"
            )
        found = skops.io.load(str(file), trusted=[])
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{file}: no file of skops ({type(error).__name__}: {str(error)[:200]})") from None
    return refuse_no_estimator(found, str(file))


def refuse_no_estimator(found: Any, what: str) -> Any:
    """The fitted model itself; DataError where it is none that answers about rows."""
    if not hasattr(found, "n_features_in_") or not (hasattr(found, "predict_proba") or hasattr(found, "predict")):
        raise DataError(f"{what}: holds a {type(found).__name__}; give a fitted classifier or regressor")
    if hasattr(found, "classes_") and not hasattr(found, "predict_proba"):
        raise DataError(f"{what}: {type(found).__name__} gives no probabilities (predict_proba); calibrate it first")
    return found


class Fitted(nn.Module):
    """A fitted model of scikit-learn as a module: rows `[B, F]` -> log-probabilities `[B, C]`, or numbers `[B, D]`.

    `content`: the SHA-256 of what it holds, so that another model is another module.
    """

    def __init__(self, fitted: Any) -> None:
        super().__init__()
        self.fitted = fitted
        content = hashlib.sha256(pickle.dumps(fitted)).digest()
        self.register_buffer("content", torch.frombuffer(bytearray(content), dtype=torch.uint8), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        features = rows.detach().cpu().flatten(1).double().numpy()
        names = getattr(self.fitted, "feature_names_in_", None)
        table = features if names is None else _frame(features, list(names))
        if hasattr(self.fitted, "predict_proba"):
            found = np.log(np.clip(self.fitted.predict_proba(table), TINY, None))
        else:
            found = np.asarray(self.fitted.predict(table), float).reshape(len(features), -1)
        return torch.from_numpy(np.ascontiguousarray(found, np.float32)).to(rows.device)


def _frame(features: np.ndarray, names: list[str]) -> Any:
    """A DataFrame where pandas is there, since the model was fitted on one; else the numbers in the same order."""
    try:
        import pandas
    except ImportError:
        return features
    return pandas.DataFrame(features, columns=names)


class Columns(nn.Module):
    """Some columns of a row, in another order, as a model reads them that was fitted on these."""

    places: Tensor

    def __init__(self, places: Sequence[int], inner: nn.Module) -> None:
        super().__init__()
        self.register_buffer("places", torch.tensor(list(places)))
        self.inner = inner

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.inner(rows.index_select(1, self.places))
        return found


class Answers(nn.Module):
    """Some outputs of a model in another order, or numbers in their own units standardised as (x − mean) / std."""

    def __init__(
        self,
        inner: nn.Module,
        order: Sequence[int] | None = None,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.inner, self.order = inner, None if order is None else list(order)
        self.register_buffer("mean", torch.tensor(list(mean) or [0.0]))
        self.register_buffer("std", torch.tensor(list(std) or [1.0]))

    def forward(self, rows: Tensor) -> Tensor:
        found = self.inner(rows)
        if self.order is not None:
            return torch.as_tensor(found[:, self.order])
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return torch.as_tensor((found - mean) / std)
