"""Record → one text, and which of its characters are the answer's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dualoptim_cli.data.bounds import OutOfBounds, bounded
from dualoptim_cli.data.formats import BadRow
from dualoptim_cli.data.records import Message, Record
from dualoptim_cli.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PLAIN = "Question: {question}\nAnswer: {answer}"

# What a template may take to write one row, which has at most 16 MiB.
SECONDS, MEMORY = 10.0, 512 * 2**20

TEMPLATE_HINT = "Use data.template=plain, or another template by data.template=FILE."

# What a template's own arithmetic, calls and nesting can end in, beside Jinja's own errors.
MISTAKES = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A record as the model reads it.

    `answers` are the character ranges that the assistant says, with the mark that ends its turn; `closed` tells
    that the last one has such a mark, so that it needs no end-of-sequence token, and `opened` that the text begins
    as the template wants it to, so that the tokenizer puts nothing in front.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    closed: bool = False
    opened: bool = False


class Template(Protocol):
    """A way to write a record. `answer` stands in for the record's own; then nothing else counts as answer."""

    name: str

    def render(self, record: Record, answer: str | None) -> Rendered: ...


class PlainTemplate:
    """Question and answer in a fixed text, for models that know no chats."""

    name = "plain"

    def __init__(self, pattern: str = PLAIN) -> None:
        self._before, _, rest = pattern.partition("{question}")
        self._between, _, _ = rest.partition("{answer}")

    def render(self, record: Record, answer: str | None) -> Rendered:
        """The text ends with the answer. Raises BadRow for a chat that is more than a question and an answer."""
        question = record.prompt
        if record.messages:
            if [message.role for message in record.messages] != ["user", "assistant"]:
                raise BadRow(
                    "is a chat of more than a question and an answer, and the tokenizer has no chat template",
                    "Give one by data.template=FILE, or leave such rows out.",
                )
            question = record.messages[0].content
        prompt = f"{self._before}{question}{self._between}"
        if answer is None:
            answer = record.answer
        text = prompt + answer
        return Rendered(text, ((len(prompt), len(text)),))


class ChatTemplate:
    """The tokenizer's own chat template, or one from a file."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, source: str | None = None, name: str = "chat") -> None:
        self.name = name
        self._tokenizer = tokenizer
        self._source = source

    def render(self, record: Record, answer: str | None) -> Rendered:
        """Write the chat twice, once with marks for the assistant's turns, and so find where they are.

        Raises BadRow when the template refuses the chat or changes what the assistant says.
        """
        messages = record.messages or (Message("user", record.prompt), Message("assistant", record.answer))
        if answer is not None:
            messages = (*messages[:-1], Message("assistant", answer))
        pieces = self._write(_with_marks(messages))
        text = self._write(messages)
        turns = [message.content for message in messages if message.role == "assistant"]
        frame = _split_at_marks(pieces, len(turns))
        if frame is not None and text != _join(frame, turns):
            turns = [turn.strip() for turn in turns]  # most templates strip what is said
        if frame is None or text != _join(frame, turns):
            raise BadRow(
                "is a chat that the chat template does not repeat word for word, so its mask is not known",
                TEMPLATE_HINT,
            )
        return _mark(text, frame, turns, last_only=answer is not None)

    def _write(self, messages: Sequence[Message]) -> str:
        from jinja2 import TemplateError

        try:
            return self._apply(messages)
        except (TemplateError, *MISTAKES) as error:
            if messages[0].role != "system" or len(messages) < 2 or messages[1].role != "user":
                raise BadRow(
                    f"is a chat that the chat template refuses ({type(error).__name__})",
                    TEMPLATE_HINT,
                ) from None
        folded = Message("user", f"{messages[0].content}\n\n{messages[1].content}")
        return self._write((folded, *messages[2:]))

    def _apply(self, messages: Sequence[Message]) -> str:
        chat = [{"role": message.role, "content": message.content} for message in messages]
        try:
            with bounded(seconds=SECONDS, memory=MEMORY):
                written = self._tokenizer.apply_chat_template(chat, chat_template=self._source, tokenize=False)
        except OutOfBounds:  # raised at once: each further row would take as long
            limit = f"{SECONDS:g} seconds or {MEMORY / 2**20:.0f} MiB"
            fact = f"The chat template ({self.name}) takes more than {limit} for one row."
            raise UserError(fact, TEMPLATE_HINT) from None
        assert isinstance(written, str)
        return written


def _sign(number: int) -> str:
    return f"\ue000answer {number}\ue001"  # private use: in no text, and left alone by strip()


def _with_marks(messages: Sequence[Message]) -> list[Message]:
    marked: list[Message] = []
    number = 0
    for message in messages:
        if message.role == "assistant":
            message = Message(message.role, _sign(number))
            number += 1
        marked.append(message)
    return marked


def _split_at_marks(text: str, count: int) -> list[str] | None:
    """The template's own pieces around the assistant's turns; None when it does not write each exactly once."""
    pieces = []
    for number in range(count):
        before, sign, text = text.partition(_sign(number))
        if not sign:
            return None
        pieces.append(before)
    return [*pieces, text]


def _join(frame: Sequence[str], turns: Sequence[str]) -> str:
    return "".join(piece + turn for piece, turn in zip(frame, [*turns, ""], strict=True))


def _mark(text: str, frame: Sequence[str], turns: Sequence[str], *, last_only: bool) -> Rendered:
    """Where the assistant's turns stand in the text, each with the mark that ends it, if the template writes one."""
    ending = frame[-1].rstrip()
    spans: list[tuple[int, int]] = []
    position = 0
    for before, turn, behind in zip(frame, turns, frame[1:], strict=False):
        start = position + len(before)
        position = start + len(turn)
        end = position
        if behind.startswith(ending):
            end += len(ending)
        spans.append((start, end))
    text = text[: spans[-1][1]]
    if last_only:
        del spans[:-1]
    return Rendered(text, tuple(spans), closed=bool(ending), opened=True)


def choose_template(tokenizer: PreTrainedTokenizerFast, setting: str) -> Template:
    """`auto`, `chat`, `plain`, a plain pattern with {question} and {answer}, or a file with either kind.

    Raises a UserError when the tokenizer lacks the chat template, or there is no such file.
    """
    if setting == "plain" or (setting == "auto" and not tokenizer.chat_template):
        return PlainTemplate()
    if setting in ("auto", "chat"):
        if not tokenizer.chat_template:
            raise UserError("The tokenizer has no chat template.", "Use data.template=plain, or give a file.")
        return ChatTemplate(tokenizer)
    if "{answer}" in setting:
        return _plain_pattern(setting, "data.template")
    try:
        source = Path(setting).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"data.template: {setting} is no file.",
            "Use auto, chat, plain, a file, or a text with {question} and {answer}.",
        ) from None
    except (OSError, ValueError) as error:  # a name can hold a zero, and a file what is not UTF-8
        raise UserError(f"{setting} cannot be read as text ({type(error).__name__}).", "Save it as UTF-8.") from None
    if "{answer}" in source:
        return _plain_pattern(source.removesuffix("\n"), setting)
    if "messages" not in source:
        raise UserError(f"{setting} is no template.", "It needs {question} and {answer}, or Jinja over `messages`.")
    return ChatTemplate(tokenizer, source, name=setting)


def _plain_pattern(pattern: str, where: str) -> PlainTemplate:
    if "{question}" not in pattern.partition("{answer}")[0] or not pattern.endswith("{answer}"):
        raise UserError(f"{where} needs {{question}} first and {{answer}} at its end.", f"As in {PLAIN!r}.")
    return PlainTemplate(pattern)
