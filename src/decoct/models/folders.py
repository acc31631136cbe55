"""Files beside pretrained weights: how long texts may be, and how pictures are brought to what the network saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from decoct.artifact import Strict, read_json
from decoct.errors import DataError

TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
"""Files that hold a vocabulary."""
PICTURES = "preprocessor_config.json"
ALSO_READ = (*TOKENIZERS, "tokenizer_config.json", "special_tokens_map.json", PICTURES)
"""Files beside config and weights that say how the network is asked."""
RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers for ways to resize."""
LONGEST = 1 << 20


class _Length(Strict):
    """What is read of tokenizer_config.json."""

    model_max_length: int | float | None = None


class _Pictures(Strict):
    """What is read of preprocessor_config.json."""

    do_normalize: bool = True
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    image_mean: list[float] | float | None = None
    image_std: list[float] | float | None = None
    size: Any = None
    crop_size: Any = None
    do_center_crop: bool = False
    resample: int | None = None


def tokenizer_folder(folder: Path) -> Path | None:
    """The folder itself where a tokenizer lies in it."""
    return folder if any((folder / name).is_file() for name in TOKENIZERS) else None


def longest_text(folder: Path, config: Any) -> int | None:
    """The most ids, special ones included, that a network of text reads; None where nothing says so."""
    found = []
    if (folder / "tokenizer_config.json").is_file():
        said = read_json(folder / "tokenizer_config.json", _Length, error=DataError).get("model_max_length")
        found += [int(said)] if said and said < LONGEST else []
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and 0 < positions < LONGEST:
        padding = getattr(config, "pad_token_id", None)
        shifted = config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer")
        found.append(positions - (int(padding or 0) + 1 if shifted else 0))
    return min(found, default=None)


def image_settings(folder: Path) -> dict[str, Any]:
    """`mean`, `std`, `size` and `resample` that preprocessor_config.json asks for; empty where there is none.

    DataError for pictures that are not scaled to [0, 1] first.
    """
    file = folder / PICTURES
    if not file.is_file():
        return {}
    said = read_json(file, _Pictures, error=DataError)
    if said.get("image_mean") is None and said.get("size") is None:
        return {}  # of sound, say
    factor = said.get("rescale_factor", 1 / 255)
    if not said.get("do_rescale", True) or abs(factor * 255 - 1) > 1e-3:
        raise DataError(
            f"{file}: rescale_factor is {factor}, do_rescale {said.get('do_rescale', True)}; pictures are scaled by "
            "1/255 here: put the factor into image_mean and image_std"
        )
    plain = not said.get("do_normalize", True)
    mean, std = said.get("image_mean", [0.5] * 3), said.get("image_std", [0.5] * 3)
    size = _side(said.get("crop_size")) if said.get("do_center_crop") else None
    return {
        "mean": (0.0,) * 3 if plain else _numbers(mean),
        "std": (1.0,) * 3 if plain else _numbers(std),
        "size": size or _side(said.get("size")),
        "resample": RESAMPLING.get(said.get("resample", 2), "bilinear"),
    }


def _numbers(value: list[float] | float) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, list) else (float(value),)


def _side(value: Any) -> int | None:
    """Pixels a side: `224`, `{height: 224, width: 224}`, `{shortest_edge: 224}`."""
    if isinstance(value, dict):
        value = next((value[name] for name in ("height", "shortest_edge", "width") if value.get(name)), None)
    return int(value) if isinstance(value, int | float) and value > 0 else None
