"""Documents that are nearly right: valid bytes with a few wounds."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

NASTY = (
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"\n", b"\x1b[2J", b'"', b"'", b"{", b"}", b"[", b"]", b":", b",",
    b"\\u0000", b"\\ud800", b"NaN", b"Infinity", b"-", b"1e999", b"null", b"true", b"9" * 400, b"[" * 2000, b"&a [*a]",
    b"!!python/object", b"<script>", "\u202e".encode(), "日本".encode(), b"\t", b"#", b"---\n",
    b"*before", b"= ", b"../../x", b"%00",
)  # fmt: skip

_WOUND = st.tuples(
    st.sampled_from(("insert", "delete", "replace", "repeat", "truncate", "swap")),
    st.floats(0, 1),
    st.one_of(st.sampled_from(NASTY), st.binary(max_size=6)),
    st.integers(0, 60),
)
WOUNDS = st.lists(_WOUND, max_size=6)


def wounded(*documents: bytes) -> st.SearchStrategy[bytes]:
    """One of the documents after up to six wounds; now and then nothing but noise."""
    damaged = st.builds(hurt, st.sampled_from(documents), WOUNDS)
    return st.one_of(damaged, damaged, damaged, st.binary(max_size=200))


def hurt(document: bytes, wounds: list[tuple[str, float, bytes, int]]) -> bytes:
    """The document after these wounds."""
    for kind, place, other, length in wounds:
        at = int(place * len(document))
        end = at + length
        match kind:
            case "insert":
                document = document[:at] + other + document[at:]
            case "delete":
                document = document[:at] + document[end:]
            case "replace":
                document = document[:at] + other + document[at + len(other) :]
            case "repeat":
                document = document[:end] + document[at:end] * 3 + document[end:]
            case "truncate":
                document = document[:at]
            case _:
                document = document[end:] + document[:end]
    return document


WORDS = st.one_of(
    st.text(max_size=12),
    st.text(string.printable, max_size=12),
    st.sampled_from([nasty.decode(errors="replace") for nasty in NASTY]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=5,
)

ODD = (
    "-Infinity", "Infinity", "NaN", "1e999", "-1e999", "1e308", "-1e308", "1e-400", "9" * 400, "-" + "9" * 400,
    "9" * 5000, "-1", "0", "-0.0", "0.5", "true", "false", "null", '""', '"\\u001b[2J\\u0007\\u202e"', '"\\ud800"',
    '"a\\nb"', '"[bold red]x"', "[]", "{}", "[[]]", '{"": null}', '{"\\u001b[31m": 1}', "[1, 2, 3]",
    "[" * 3000 + "]" * 3000,
)  # fmt: skip
"""JSON values that a file may hold where another one belongs."""


def odd(document: bytes) -> st.SearchStrategy[bytes]:
    """The JSON document with one to three of its values, or of its keys, replaced by odd ones."""
    change = st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(ODD), st.booleans())
    return st.lists(change, min_size=1, max_size=3).map(lambda changes: _replaced(document, changes))


def _replaced(document: bytes, changes: list[tuple[float, str, bool]]) -> bytes:
    """The document after these changes; a value that is replaced takes what is inside it along."""
    whole = json.loads(document)
    marks: dict[str, str] = {}
    for share, value, in_key in changes:
        places = list(_places(whole))
        if not places:
            break
        holder, key = places[int(share * len(places))]
        mark = f"odd-{len(marks)}"
        if in_key and isinstance(holder, dict):
            holder[json.loads(value) if value.startswith('"') else value[:40]] = holder.pop(key)
        else:
            holder[key] = mark
            marks[mark] = value
    text = json.dumps(whole)
    for mark, value in marks.items():
        text = text.replace(f'"{mark}"', value)
    return text.encode(errors="surrogatepass")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in nested lists and mappings, as what holds it and its key there."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])
