"""Byte-pair encoding in Kimi's split pattern, and its `tiktoken.model` file.

Ranks 0 to 255 are the single bytes; each later rank joins the adjacent pair that was the most frequent in the training
text, ties going to the lower ranks. Encoding follows tiktoken: in a piece, the adjacent pair whose joined bytes have
the lowest rank is merged first.
"""

import base64
import collections
import heapq

import numpy as np
import regex

RESERVED = 256  # ids after the byte pairs: [BOS], [EOS], <|im_end|>, ... in Kimi-K2's order
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
BEFORE, AFTER = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = regex.compile("|".join([
    r"[\p{Han}]+",
    f"{BEFORE}{UPPER}*{LOWER}+{AFTER}",
    f"{BEFORE}{UPPER}+{LOWER}*{AFTER}",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
]), regex.VERSION1)  # version 1 knows the class intersection &&


class Tokenizer:
    def __init__(self, ranks):
        self.ranks = ranks  # bytes -> rank
        self.known = {}  # piece -> ids

    @classmethod
    def train(cls, text, size):
        """A vocabulary of `size` byte pairs."""
        counts = collections.Counter(PATTERN.findall(text))
        words = [list(piece.encode()) for piece in counts]
        times = list(counts.values())
        vocabulary = [bytes([byte]) for byte in range(256)]
        ranks = {token: rank for rank, token in enumerate(vocabulary)}
        pairs, where = collections.Counter(), collections.defaultdict(set)
        for number, word in enumerate(words):
            for pair in zip(word, word[1:]):
                pairs[pair] += times[number]
                where[pair].add(number)
        heap = [(-count, pair) for pair, count in pairs.items()]
        heapq.heapify(heap)
        while len(vocabulary) < size:
            if not heap:
                raise ValueError(f"the text has only {len(vocabulary)} byte pairs, not {size}")
            count, best = heapq.heappop(heap)
            if pairs[best] != -count:  # an entry that a merge has overtaken; the true one is in the heap too
                continue
            joined = vocabulary[best[0]] + vocabulary[best[1]]
            if joined not in ranks:  # the same bytes can come about in two ways
                ranks[joined] = len(vocabulary)
                vocabulary.append(joined)
            changed = set()
            for number in where.pop(best):
                old = words[number]
                new = merged(old, best, ranks[joined])
                for word, sign in ((old, -1), (new, 1)):
                    for pair in zip(word, word[1:]):
                        pairs[pair] += sign * times[number]
                        changed.add(pair)
                        if sign > 0:
                            where[pair].add(number)
                words[number] = new
            for pair in changed:
                if pairs[pair] > 0:
                    heapq.heappush(heap, (-pairs[pair], pair))
        return cls(ranks)

    def encode(self, text):
        """The ids of a text."""
        ids = []
        for piece in PATTERN.findall(text):
            known = self.known.get(piece)
            if known is None:
                known = self.known[piece] = self.encode_piece(piece.encode())
            ids += known
        return np.array(ids, dtype=np.int64)

    def encode_piece(self, piece):
        parts = [bytes([byte]) for byte in piece]
        while len(parts) > 1:
            none = len(self.ranks)
            rank, at = min((self.ranks.get(a + b, none), at) for at, (a, b) in enumerate(zip(parts, parts[1:])))
            if rank == none:
                break
            parts[at:at + 2] = [parts[at] + parts[at + 1]]
        return [self.ranks[part] for part in parts]

    def to_tiktoken(self):
        """The content of a `tiktoken.model`."""
        return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in self.ranks.items())


def merged(word, pair, rank):
    """`word` with each `pair` in it replaced by `rank`, from the left."""
    result, at = [], 0
    while at < len(word):
        if at + 1 < len(word) and word[at] == pair[0] and word[at + 1] == pair[1]:
            result.append(rank)
            at += 2
        else:
            result.append(word[at])
            at += 1
    return result
