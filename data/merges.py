"""Learning the merges of byte-level BPE from counted words (Sennrich, Haddow & Birch 2016).

The most frequent pair of neighbouring tokens becomes one token, again and again. The words lie one after the other in
flat arrays, each position linked to its neighbours, and every pair knows its positions: a merge touches the positions
of its pair alone, so that a word of a million bytes costs no more than as many bytes in short words.
"""

import heapq
from array import array
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

N_BYTES = 256
_END, _GONE = -1, -2  # in place of a token: between two words, and where a merge has removed it

Pair = tuple[int, int]


def learn_tokens(words: Mapping[bytes, int], size: int) -> list[bytes]:
    """The bytes of every token, by rank: the 256 bytes, then merges up to `size` tokens, each of the pair that is most
    frequent in the counted words (of equally frequent pairs the one of earlier tokens). Fewer tokens where every word
    has become one."""
    tokens = [bytes([b]) for b in range(N_BYTES)]
    text = _Text(words)
    heap = [(-count, pair) for pair, count in text.pairs.items()]
    heapq.heapify(heap)
    while heap and len(tokens) < size:
        count, pair = heapq.heappop(heap)
        if -count != text.pairs.get(pair, 0):  # it has changed since it was pushed
            if text.pairs.get(pair, 0) > 0:
                heapq.heappush(heap, (-text.pairs[pair], pair))
            continue
        # These are never the bytes of an earlier token: merges in order make the same token of the same bytes wherever
        # they stand, unless one of the merges takes a byte of their neighbours.
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        for new_pair in text.merge(pair, len(tokens) - 1):
            heapq.heappush(heap, (-text.pairs[new_pair], new_pair))
    return tokens


class _Text:
    """The tokens of all words, and their `pairs` with counts. Takes about 40 bytes a byte of the words, and 400 a
    distinct pair.

    `tokens[i]` is the token that begins at position i, `left[i]` and `right[i]` the positions of its neighbours,
    `weights[i]` the count of its word. `positions[pair]` has every position of a pair, and some where an earlier merge
    has removed it."""

    def __init__(self, words: Mapping[bytes, int]):
        tokens = np.frombuffer(b"".join(b"\0" + word for word in words) + b"\0", np.uint8).astype(np.int32)
        lengths = np.array([1 + len(word) for word in words], np.int64)
        tokens[0] = tokens[np.cumsum(lengths)] = _END
        weights = np.append(np.repeat(np.array([*words.values()], np.int64), lengths), 0)
        self._find_pairs(tokens, weights)
        self.tokens, self.weights = array("i", tokens.tobytes()), array("q", weights.tobytes())
        self.left, self.right = array("i", range(-1, len(tokens) - 1)), array("i", range(1, len(tokens) + 1))

    def _find_pairs(self, tokens: np.ndarray, weights: np.ndarray) -> None:
        positions = np.flatnonzero((tokens[:-1] != _END) & (tokens[1:] != _END)).astype(np.int32)
        keys = (tokens[positions] * N_BYTES + tokens[positions + 1]).astype(np.uint16)
        order = np.argsort(keys, kind="stable")
        positions, keys = positions[order], keys[order]
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        counts = np.add.reduceat(weights[positions], starts) if len(starts) else starts
        pairs = [divmod(key, N_BYTES) for key in keys[starts].tolist()]
        self.pairs: defaultdict[Pair, int] = defaultdict(int, zip(pairs, counts.tolist(), strict=True))
        of_pairs = zip(pairs, np.split(positions, starts[1:]), strict=False)
        self.positions = {pair: array("i", occurrences.tobytes()) for pair, occurrences in of_pairs}

    def merge(self, pair: Pair, new: int) -> list[Pair]:
        """Replace `pair` by the token `new` in all words, and return the pairs that `new` is part of."""
        tokens, left, right, weights, pairs = self.tokens, self.left, self.right, self.weights, self.pairs
        first, second = pair
        new_positions: defaultdict[Pair, array] = defaultdict(lambda: array("i"))
        for i in self.positions.pop(pair):  # in ascending order, so of "aaa" the first two
            j = right[i]
            if tokens[i] != first or tokens[j] != second:  # an earlier merge took one of them
                continue
            previous, following, count = left[i], right[j], weights[i]
            tokens[i], tokens[j] = new, _GONE
            right[i], left[following] = following, i
            if (token := tokens[previous]) != _END:
                pairs[token, first] -= count
                pairs[token, new] += count
                new_positions[token, new].append(previous)
            if (token := tokens[following]) != _END:
                pairs[second, token] -= count
                pairs[new, token] += count
                new_positions[new, token].append(i)
        del pairs[pair]
        # All of a pair's positions are made by one merge, that of its later token.
        self.positions |= {other: positions for other, positions in new_positions.items() if pairs[other] > 0}
        return [other for other in new_positions if pairs[other] > 0]
