#!/usr/bin/env python3
"""Writes tests/fixtures/tokenizer/goldens.json: what Python's tiktoken makes of many texts with the demo vocabulary.

Usage: pip install tiktoken, then: python3 tools/make_tokenizer_goldens.py
Needs no network. The engine's encoder must give exactly these ids; tests/tokenizer_goldens.rs compares.

A case is {"text": [[piece, times], ...], "ids": [id or [id, times], ...]}: pieces repeated and put together, and
run-length-coded ids, so that texts of a megabyte stay small here.
"""

import itertools
import json
import pathlib
import random

import tiktoken
from tiktoken.load import load_tiktoken_bpe

ROOT = pathlib.Path(__file__).resolve().parent.parent
LETTERS_UP = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
LETTERS_LOW = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
LEAD = r"[^\r\n\p{L}\p{N}]?"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = "|".join([
    r"[\p{Han}]+",
    f"{LEAD}{LETTERS_UP}*{LETTERS_LOW}+{CONTRACTION}",
    f"{LEAD}{LETTERS_UP}+{LETTERS_LOW}*{CONTRACTION}",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
])
SLICE, RUN = 400_000, 25_000

TEXTS = """
In the beginning God created the heaven and the earth.|Hello, world!|Don't you'd we'll I'VE they're it's o'clock 'tis
naïve café Ångström ŒUVRE ǅungla straße İstanbul|Привет, мир! Ελληνικά ΣΊΣΥΦΟΣ|中文漢字と日本語カタカナ한국어 mixed漢mixed〇々⺀
1 12 123 1234 12345678 3.14159 ١٢٣٤ ½ Ⅷ 一二三|fn main() { println!("{}", x[0] & 0xFF); } // comment|a_b-c+d=e*f/g\\h^i~j`k
👍👩‍👩‍👧‍👦🇩🇪🏳️‍🌈 é decomposed é composed ́alone|السلام عليكم שלום हिन्दी नमस्ते ภาษาไทย|[BOS][EOS]<|im_end|><|im_user|>user<|im_middle|>
<|reserved_token_3845|>|‏right-to-left‎ zero​width﻿bom|ALLCAPS MixedCase camelCaseWord SCREAMING_SNAKE lowerUPPER
!!!???... --- *** ### <<<>>> ((( ))) [[]] {{}}|http://example.com/a?b=c&d=e#f user@host.org C:\\dir\\file.txt
""".strip().replace("\n", "|").split("|") # control-token names contain the separator: see NAMES
NAMES = ["[BOS]a[EOS]", "<|im_end|>", "<|im_user|>user<|im_middle|>hi<|im_end|>", "<|reserved_token_3845|>", "<think>x</think>"]
SPACES = ["", " ", "  ", "   a", "a   ", "a  b", "\n", "\n\n", " \n ", "\r\n", "a\r\n\r\n  b", "\t\tx", " \t \n\t y", "\u00a0x",
          "\u2003\u2003y", "\u3000字", "\x0b\x0c", "\x1c\x1d x", "\x00", "\x00\x01\x7f", "\u0085z", "!\n\n!", " !\r\n", "x \n\n  \n y"]


def isolate(text):
    """The slices that Kimi's tokenizer encodes one by one."""
    for start in range(0, len(text), SLICE):
        part = text[start:start + SLICE]
        begin, run, space = 0, 0, None
        for at, char in enumerate(part):
            if char.isspace() == space:
                run += 1
            else:
                run, space = 1, char.isspace()
            if run > RUN:
                yield part[begin:at]
                begin, run = at, 1
        yield part[begin:]


def random_texts(rng):
    """Strings over alphabets that make the pattern's alternatives meet."""
    alphabets = [
        "aA 1!\n", "abcXYZ'sStT ", "漢字かなaA1 。\n", " \t\r\n\u00a0\u3000x", "ʰªǅ́ͅאa A漢", "0123456789²Ⅷ٣ .,",
        "".join(chr(c) for c in range(32, 127)),
    ]
    for alphabet in alphabets:
        for length in (1, 2, 3, 5, 8, 13, 40, 120):
            yield "".join(rng.choice(alphabet) for _ in range(length))
    for _ in range(60):
        yield "".join(chr(c) for c in (rng.choice([rng.randrange(0x300), rng.randrange(0x3000), rng.randrange(0xD800),
                      rng.randrange(0xE000, 0x110000)]) for _ in range(24)))


def long_texts():
    """Runs around the limits of 25,000 and 400,000 characters."""
    for piece in ("a", "A", " ", "\n", "!", "7", "é", "漢", "\u0301", "\x1c", "aA", "'s", " \n"):
        yield [[piece, 25_000]]
        yield [[piece, 25_001]]
        yield [["x ", 3], [piece, 60_001], [" y", 2]]
    yield [["the word ", 44_444], ["beginning", 1], [" end", 2]]
    yield [["the word ", 133_337]]
    yield [["a ", 195_000], ["b", 40_000]]
    yield [[" ", 1_000_000]]
    yield [["z", 1_000_000]]


def main():
    ranks = load_tiktoken_bpe(str(ROOT / "models/demo/tiktoken.model"))
    encoding = tiktoken.Encoding("demo", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    rng = random.Random(20)
    parts = [[[text, 1]] for text in [*TEXTS, *NAMES, *SPACES, *random_texts(rng)]] + list(long_texts())
    cases = []
    for part in parts:
        text = "".join(piece * times for piece, times in part)
        ids = [i for piece in isolate(text) for i in encoding.encode_ordinary(piece)]
        coded = []
        for token, group in itertools.groupby(ids):
            times = len(list(group))
            coded += [token] * times if times < 4 else [[token, times]]
        if len(coded) > 4000:
            coded = {"count": len(ids), "sum": sum(i * (n % 1009 + 1) for n, i in enumerate(ids))}
        cases.append({"text": part, "ids": coded})
    out = ROOT / "tests/fixtures/tokenizer/goldens.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    out.write_text(f'{{"tiktoken":"{tiktoken.__version__}","cases":[\n{lines}\n]}}\n')
    print(f"{len(cases)} cases, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
