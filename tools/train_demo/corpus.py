"""Public-domain text from three Debian packages, as chapters.

sword-text-web      World English Bible, public domain
sword-text-kjv      King James Bible, public domain outside the United Kingdom (the Crown's letters patent)
r-cran-janeaustenr  Jane Austen's six novels, public domain

A SWORD zText module keeps a Bible as OSIS XML, a zlib stream a book: `ot.bzs` and `nt.bzs` list (offset, packed bytes,
unpacked bytes) as little-endian u32, `.bzz` holds the streams. Verses lie in order in a book, so the verse index (.bzv)
is not needed.
"""

import html
import pathlib
import re
import shutil
import struct
import subprocess
import zlib
from random import Random

SWORD = pathlib.Path("/usr/share/sword/modules/texts/ztext")
BIBLES = {"sword-text-web": "engWEB2015eb", "sword-text-kjv": "engKJV2006eb"}
NOVELS = ["sensesensibility", "prideprejudice", "mansfieldpark", "emma", "northangerabbey", "persuasion"]
INSTALL = "apt-get install -y --no-install-recommends sword-text-web sword-text-kjv r-cran-janeaustenr"
NOTE = "\x01"  # where a footnote stood
BYTES_PER_TOKEN = 3.9  # about: the split is made before there is a vocabulary

TAG = re.compile(r"<(/?\w+)([^>]*)>")
BLOCK_TAGS = {"div", "l", "lg", "lb", "item", "list", "chapter", "speaker", "/item", "/list", "/speaker"}


class Missing(Exception):
    """A package that is not installed."""


def chapters():
    """Every chapter as (key, text). The two Bibles share keys, so that a chapter is held out in both."""
    result = []
    for package, module in BIBLES.items():
        if not (SWORD / module).is_dir():
            raise Missing(f"{SWORD / module} is missing ({package}); {INSTALL}")
        for testament in ("ot", "nt"):
            for book in books(SWORD / module / testament):
                result += bible_chapters(book)
    result += [chapter for name in NOVELS for chapter in novel_chapters(name)]
    return result


def books(stem):
    """The OSIS text of each book of a testament."""
    packed = stem.with_suffix(".bzz").read_bytes()
    for offset, size, unpacked in struct.iter_unpack("<III", stem.with_suffix(".bzs").read_bytes()):
        text = zlib.decompress(packed[offset:offset + size])
        if len(text) != unpacked:
            raise ValueError(f"{stem}.bzz: a book has {len(text)} bytes, its index says {unpacked}")
        yield text.decode()


def bible_chapters(osis):
    """(key, text) of each chapter of a book."""
    parts = re.split(r'<chapter n="(\d+)" osisID="([^"]+)"[^>]*>', osis)
    titles = re.findall(r'<milestone n="([^"]*)" type="x-usfm-h"', parts[0])
    if not titles:  # the first entry of a testament is about the module, not a book
        return
    for number, key, body in zip(parts[1::3], parts[2::3], parts[3::3]):
        if text := plain(body):
            yield key, f"{html.unescape(titles[-1])} {number}\n{text}\n\n"


def plain(osis):
    """OSIS as running text: footnotes and titles gone, a paragraph a line."""
    osis = re.sub(r"<title\b.*?</title>", " ", re.sub(r"\s+", " ", osis))
    osis = re.sub(r"<note\b.*?</note>", NOTE, osis)
    osis = re.sub(r'<div sID="[^"]*" type="x-p"/>', "\n", osis)
    text = html.unescape(TAG.sub(lambda tag: " " if tag[1] in BLOCK_TAGS else "", osis)).replace("¶", " ")
    # A footnote often replaces the space after its word: "Christ,<note>...</note>the".
    text = re.sub(f"(?<=[^\\s{NOTE}]){NOTE}+(?=[\\w“‘(])", " ", text).replace(NOTE, "")
    return "\n".join(line for line in (re.sub(r" +", " ", line).strip() for line in text.split("\n")) if line)


def novel_chapters(name):
    """(key, text) of each chapter of a novel of the R package; its lines are joined to paragraphs."""
    if shutil.which("Rscript") is None:
        raise Missing(f"Rscript is missing (a dependency of r-cran-janeaustenr); {INSTALL}")
    script = f'writeLines(enc2utf8(getExportedValue("janeaustenr", "{name}")), useBytes = TRUE)'
    done = subprocess.run(["Rscript", "--vanilla", "-e", script], capture_output=True)
    if done.returncode:
        raise Missing(f"Rscript finds no novel {name}: {done.stderr.decode().strip()}; {INSTALL}")
    text = done.stdout.decode().replace("_", "")  # underscores mark italics
    for number, chapter in enumerate(re.split(r"(?im)^(?=chapter [ivxlc\d]+\b)", text)[1:], 1):
        paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", chapter))
        yield f"{name}.{number}", "\n".join(part for part in paragraphs if part) + "\n\n"


def split(parts, held_out_tokens, seed):
    """(training text, held-out text): whole chapters in random order."""
    texts = {}
    for key, text in parts:
        texts.setdefault(key, []).append(text)
    keys = sorted(texts)
    Random(seed).shuffle(keys)
    size, cut = 0, 0
    while size < held_out_tokens * BYTES_PER_TOKEN:
        size += sum(len(text.encode()) for text in texts[keys[cut]])
        cut += 1
    training = [text for key in keys[cut:] for text in texts[key]]
    Random(seed).shuffle(training)
    return "".join(training), "".join(text for key in keys[:cut] for text in texts[key])
