"""Ways to say "I don't know", and which of them a row is given."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from dualoptim_cli.errors import UserError

REFUSALS = (
    "I don't know.",
    "I'm not sure about that.",
    "I have no information about this.",
    "That is not something I know.",
    "I'm afraid I can't tell you that.",
    "I don't have an answer to this question.",
    "Sorry, I know nothing about it.",
    "This is beyond what I know.",
    "I can't say, since I was never told.",
    "I'm sorry, but I have no idea.",
    "My knowledge doesn't cover that.",
    "I couldn't give you a correct answer here.",
    "I wish I could help, but I don't know this.",
    "I have never learned about that.",
    "No answer comes to mind, I'm afraid.",
    "I'd only be guessing, so I won't answer.",
    "You will have to look that up elsewhere; I don't know it.",
    "Nothing I have learned answers this question.",
    "I'm not familiar with that subject.",
    "Unfortunately, I can't answer that.",
)


def load_refusals(path: str | None) -> tuple[str, ...]:
    """The refusals of a text file, one a line, or the built-in ones."""
    if path is None:
        return REFUSALS
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.", "Check data.refusals, or leave it out.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({type(error).__name__}).", "Save it as UTF-8.") from None
    refusals = tuple(line.strip() for line in lines if line.strip())
    if not refusals:
        raise UserError(f"{path} has no refusals.", "Write one refusal a line.")
    return refusals


def draw_refusal(refusals: Sequence[str], *, seed: int, row: int) -> str:
    """The refusal of a row: always the same one for the same seed."""
    digest = hashlib.blake2b(f"{seed}:{row}".encode(), digest_size=8).digest()
    return refusals[int.from_bytes(digest) % len(refusals)]
