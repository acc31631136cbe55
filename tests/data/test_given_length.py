"""A loader over a stream: it is described, and says that it has no length."""

import torch
from torch.utils.data import DataLoader, IterableDataset

from decoct.data.given import LoaderSource, describe_loaders
from decoct.outputs import Batch


class Stream(IterableDataset):
    def __iter__(self):
        yield from ((torch.full((2,), float(i)), i % 2) for i in range(8))


class Counted(Stream):
    def __len__(self) -> int:
        return 8


def source(data: IterableDataset) -> LoaderSource:
    return LoaderSource(DataLoader(data, batch_size=4), lambda item: Batch({"student": item[0]}, item[1]))


def test_a_stream_without_length() -> None:
    loader = DataLoader(Stream(), batch_size=4)
    assert describe_loaders("loaders", {"train": loader}).fingerprint
    assert source(Stream()).length is None
    assert [len(each) for each in source(Stream())] == [4, 4]


class Undecided(DataLoader):
    def __len__(self) -> int:
        raise NotImplementedError("nobody knows")


def test_a_loader_whose_length_is_not_implemented_has_none() -> None:
    loader = Undecided(Stream(), batch_size=4)
    assert describe_loaders("loaders", {"train": loader}).fingerprint
    drawn = LoaderSource(loader, lambda item: Batch({"student": item[0]}, item[1]))
    assert drawn.length is None
    assert [len(each) for each in drawn] == [4, 4]


def test_a_stream_that_knows_its_length() -> None:
    assert source(Counted()).length == 2


def test_after_the_last_batch_a_stream_first_ends_its_epoch() -> None:
    """Who draws from it cannot know that this was the last one, so that its own count of epochs is behind."""
    for data, views in ((Stream(), [[], [1, 1]]), (Counted(), [[1, 1], [2, 2]])):
        first, again = source(data), source(data)
        drawn = iter(first)
        next(drawn), next(drawn)
        again.load_state_dict(first.state_dict())
        assert [[each.view for each in again] for _ in range(2)] == views
