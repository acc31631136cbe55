"""Training of a WordPiece vocabulary that comes out the same every time."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import pairwise

Pair = tuple[str, str]
CONTINUES = "##"


def train_wordpiece(words: Mapping[str, int], size: int, least: int = 2) -> list[str]:
    """Pieces of a vocabulary of `size`: the characters of all words, then merges, the most frequent pair first.

    `words` counts words; a piece that does not start a word begins with `##`. Equal counts are decided by the pair's
    text, so the result depends on the counts alone (the trainer of `tokenizers` depends on hash order). Pairs seen
    fewer than `least` times are not merged. As WordPiece in `tokenizers`: merges by pair frequency (Sennrich 2016).

    >>> train_wordpiece({"low": 5, "lower": 2}, 10)
    ['##e', '##o', '##r', '##w', 'l', '##ow', 'low', '##er', 'lower']
    """
    texts = sorted(words)
    counts = [words[word] for word in texts]
    pieces = [[word[0], *(CONTINUES + c for c in word[1:])] for word in texts]
    vocabulary = dict.fromkeys(sorted({piece for word in pieces for piece in word}))
    totals: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)
    for at, word in enumerate(pieces):
        for pair in pairwise(word):
            totals[pair] += counts[at]
            places[pair].add(at)
    queue = [(-count, pair) for pair, count in totals.items()]
    heapq.heapify(queue)
    while queue and len(vocabulary) < size:
        count, pair = heapq.heappop(queue)
        if -count != totals[pair]:
            continue
        if -count < least:
            break
        joined = pair[0] + pair[1].removeprefix(CONTINUES)
        vocabulary[joined] = None
        changed: set[Pair] = set()
        for at in places.pop(pair):
            changed |= _replace(pieces, at, counts[at], pair, joined, totals, places)
        del totals[pair]
        for each in changed - {pair}:
            heapq.heappush(queue, (-totals[each], each))
    return list(vocabulary)


def _replace(
    pieces: list[list[str]],
    at: int,
    count: int,
    pair: Pair,
    joined: str,
    totals: Counter[Pair],
    places: defaultdict[Pair, set[int]],
) -> set[Pair]:
    """Joins `pair` in one word and corrects the totals; gives the pairs whose totals changed."""
    old, (first, second) = pieces[at], pair
    new: list[str] = []
    for piece in old:
        if piece == second and new and new[-1] == first:
            new[-1] = joined
        else:
            new.append(piece)
    pieces[at] = new
    more: dict[Pair, int] = {}
    for each in pairwise(old):
        more[each] = more.get(each, 0) - 1
    after = set(pairwise(new))
    for each in pairwise(new):
        more[each] = more.get(each, 0) + 1
    changed = {each for each, number in more.items() if number}
    for each in changed:
        totals[each] += count * more[each]
        if each in after:
            places[each].add(at)
    return changed
