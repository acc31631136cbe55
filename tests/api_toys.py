"""Small networks, loaders and rows as a user brings them, that tests share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

SHORT: dict[str, Any] = {"epochs": 2, "log_every": 1}


class Images(nn.Module):
    """A small network with a name of its own for its middle."""

    def __init__(self, width: int, classes: int = 5) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.body(x).mean((2, 3))))


class Texts(nn.Module):
    """The mean of embeddings, from ids and mask."""

    def __init__(self, vocabulary: int, width: int, classes: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        counted = attention_mask.unsqueeze(-1).to(self.embedding.weight.dtype)
        return self.head((self.embedding(input_ids) * counted).sum(1) / counted.sum(1).clamp(min=1))


class Rows(Dataset):
    """Items as dicts, as tokenized data come."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def images(count: int = 48, size: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, size, size, generator=generator), torch.randint(0, 5, (count,), generator=generator)


def loader(*tensors: Tensor, shuffle: bool = True) -> DataLoader:
    return DataLoader(TensorDataset(*tensors), batch_size=16, shuffle=shuffle)


def network(width: int, seed: int, kind: type[nn.Module] = Images, **settings: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(width=width, **settings)


def equal(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def text_rows(count: int, seed: int, **lengths: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        ids = rng.integers(1, 20, 12)
        row: dict[str, Any] = {"label": int(rng.integers(0, 3))}
        sides = lengths or {"": 12}
        for side, length in sides.items():
            real = int(rng.integers(1, length + 1))
            mask = (np.arange(length) < real).astype(np.int64)
            each = {"input_ids": torch.from_numpy(ids[:length] * mask), "attention_mask": torch.from_numpy(mask)}
            row.update({side: each} if side else each)
        rows.append(row)
    return rows
