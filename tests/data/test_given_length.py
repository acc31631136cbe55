"""A loader over a stream: it is described, and the error says what to do where the length is needed."""

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from decoct.data.given import LoaderSource, describe_loaders
from decoct.errors import RecipeError


class Stream(IterableDataset):
    def __iter__(self):
        yield from ((torch.ones(2), i % 2) for i in range(8))


class Counted(Stream):
    def __len__(self) -> int:
        return 8


def test_a_stream_without_length() -> None:
    loader = DataLoader(Stream(), batch_size=4)
    assert describe_loaders("loaders", {"train": loader}).fingerprint
    with pytest.raises(RecipeError, match=r"has no length.*give the IterableDataset a __len__"):
        len(LoaderSource(loader, lambda item: item))


def test_a_stream_that_knows_its_length() -> None:
    assert len(LoaderSource(DataLoader(Counted(), batch_size=4), lambda item: item)) == 2
