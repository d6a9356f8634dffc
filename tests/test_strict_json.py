"""The one reader of JSON that somebody may have changed."""

from __future__ import annotations

import json

import pytest

from dualoptim_cli import strict_json

WRONG: list[str | bytes] = ["-Infinity", "NaN", "1e999", "9" * 400, "-" + "9" * 5000, "[" * 100_000, "{", b"\xff"]
WRONG += ['"\\ud800"', '{"\\udc80": 1}']


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: str(wrong)[:12])
def test_what_cannot_be_shown_or_compared_is_refused(wrong: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        strict_json.parse(wrong)


def test_everything_else_is_read_as_json_reads_it() -> None:
    text = '{"a": [1, -2.5e-300, true, null, "\\ud83d\\ude00 \\u001b"], "9": 123456789012345678901234567890}'
    assert strict_json.parse(text) == json.loads(text)
