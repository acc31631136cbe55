"""Small pretrained folders, saved by the libraries that people save theirs with; and data to go with them."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

GOOD = ["good", "great", "lovely", "fine", "superb", "charming"]
BAD = ["bad", "awful", "dull", "poor", "boring", "terrible"]
THINGS = ["film", "story", "cast", "plot", "ending", "music"]


def review(label: int, rng: random.Random) -> str:
    words = GOOD if label else BAD
    return f"the {rng.choice(THINGS)} was {rng.choice(words)} and the {rng.choice(THINGS)} {rng.choice(words)}"


def reviews(file: Path, count: int = 120, names: tuple[str, str] = ("negative", "positive")) -> Path:
    rng = random.Random(0)
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["text", "label"])
        writer.writerows([review(number % 2, rng), names[number % 2]] for number in range(count))
    return file


def save_tokenizer(folder: Path, *, spare: int = 3, as_vocabulary: bool = False) -> int:
    """A BERT tokenizer of these words, with `spare` unused pieces in front; how many ids it has."""
    from transformers import BertTokenizerFast

    pieces = ["[PAD]", *(f"[unused{number}]" for number in range(spare)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces += ["the", "was", "and", *GOOD, *BAD, *THINGS]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    if as_vocabulary:
        config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    else:
        BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    return len(pieces)


def sentiment(
    folder: Path, labels: tuple[str, ...] | None = ("POSITIVE", "NEGATIVE"), *, as_vocabulary: bool = False
) -> Path:
    """A BERT in the transformers format that was fine-tuned on `reviews`; `labels` None: the encoder alone."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

    torch.manual_seed(0)
    size = save_tokenizer(folder, as_vocabulary=as_vocabulary)
    config = BertConfig(
        vocab_size=size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    if labels is None:
        BertModel(config).save_pretrained(folder)
        return folder
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: number for number, name in enumerate(labels)}
    model, rng = BertForSequenceClassification(config), random.Random(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(25):
        target = torch.tensor([rng.randrange(2) for _ in range(16)])
        inputs = tokenizer([review(1 - int(each), rng) for each in target], padding=True, return_tensors="pt")
        loss = model(**inputs, labels=target).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    return folder


def said_by(folder: Path, texts: list[str]) -> np.ndarray:
    """Probabilities `[N, C]` as transformers itself gives them."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        found: Any = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.softmax(-1)
    return found.numpy()


def photos(folder: Path, names: tuple[str, str] = ("dark", "light"), count: int = 60, side: int = 24) -> Path:
    rng = np.random.default_rng(0)
    for number in range(count):
        place = folder / names[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(rng.normal(70 + 110 * (number % 2), 30, (side, side, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def vision_transformer(folder: Path, labels: tuple[str, ...] = ("Light", "Dark")) -> Path:
    """A ViT in the transformers format, with a processor that normalises in its own way."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        id2label=dict(enumerate(labels)),
        label2id={name: number for number, name in enumerate(labels)},
    )
    ViTForImageClassification(config).eval().save_pretrained(folder)
    processor = ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.25, 0.3], resample=3
    )
    processor.save_pretrained(folder)
    return folder


def timm_folder(folder: Path, labels: tuple[str, ...] = ("light", "dark")) -> Path:
    """A ResNet as timm saves one for the hub."""
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=len(labels)).eval()
    save_for_hf(model, folder, model_config={"label_names": list(labels)}, safe_serialization=True)
    return folder
