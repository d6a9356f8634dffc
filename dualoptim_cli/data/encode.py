"""Record + tokenizer → tokens and labels. The only home of −100."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from dualoptim_cli.data.faults import Faults
from dualoptim_cli.data.formats import BadRow
from dualoptim_cli.data.records import Record
from dualoptim_cli.data.templates import Rendered, choose_template
from dualoptim_cli.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NOT_COUNTED = -100  # what torch's cross-entropy leaves out
LongRows = Literal["auto", "cut", "split", "refuse"]
Offsets = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row as tokens. `runs` are the token ranges that the loss counts; `cut` tokens did not fit and are gone."""

    ids: tuple[int, ...]
    runs: tuple[tuple[int, int], ...]
    cut: int = 0

    @property
    def labels(self) -> list[int]:
        """The ids where they count, −100 elsewhere."""
        labels = [NOT_COUNTED] * len(self.ids)
        for start, end in self.runs:
            labels[start:end] = self.ids[start:end]
        return labels

    @property
    def prompt(self) -> tuple[int, ...]:
        """What a model is given to write the (last) answer by itself."""
        return self.ids[: self.runs[-1][0]]

    @property
    def mask(self) -> tuple[tuple[str, int], ...]:
        """The row as runs of `prompt` and `answer` tokens, each with its length."""
        parts, position = [], 0
        for start, end in self.runs:
            parts += [("prompt", start - position), ("answer", end - start)]
            position = end
        return tuple(part for part in (*parts, ("prompt", len(self.ids) - position)) if part[1])

    def counting(self, *, all_tokens: bool, skip_first: int) -> Encoded:
        """The same row with other tokens counted: `all_tokens`, or those of `runs`, but for the first of each run.

        The last token of a run always counts. Nothing predicts a row's very first token, so that never does.
        """
        runs = self.runs
        if all_tokens:
            runs = ((1, len(self.ids)),)
        return replace(self, runs=tuple((min(start + skip_first, end - 1), end) for start, end in runs))

    @property
    def answer_tokens(self) -> int:
        """How many tokens count."""
        return sum(end - start for start, end in self.runs)


class Encoder:
    """Writes records in a template and tokenizes prompt and answer as one text.

    A token that reaches over the boundary belongs to the answer. Of a plain text every token counts but the first,
    which nothing predicts. `long_rows` says what becomes of rows over `max_length` tokens; `stride` is how many
    tokens behind the last a window begins, where they are split (by default one less than `max_length`, so that
    the token a window begins with is the last of the one before). Raises a UserError when the tokenizer is not a
    fast one or has no end-of-sequence token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        template: str = "auto",
        max_length: int = 512,
        long_rows: LongRows = "auto",
        stride: int | None = None,
    ) -> None:
        if not tokenizer.is_fast:
            raise UserError(
                f"{type(tokenizer).__name__} is a slow tokenizer and cannot say where its tokens stand in the text.",
                "Use a model folder with a tokenizer.json.",
            )
        if not isinstance(tokenizer.eos_token_id, int):
            raise UserError("The tokenizer has no end-of-sequence token.", "Set eos_token in tokenizer_config.json.")
        self.tokenizer = tokenizer
        self.template = choose_template(tokenizer, template)
        self.max_length = max_length
        self.long_rows = long_rows
        self.stride = max_length - 1
        if stride is not None:
            self.stride = stride
        if not 0 < self.stride < max_length:
            raise UserError(f"data.stride is {stride}.", f"Make it 1 to {max_length - 1}, less than data.max_length.")
        self.eos_id = tokenizer.eos_token_id
        self.pad_id: int = self.eos_id
        if isinstance(tokenizer.pad_token_id, int):
            self.pad_id = tokenizer.pad_token_id
        self._lead = _leading_ids(tokenizer)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about how rows are written."""
        if self.template.name == "plain":
            return ()
        writer = self.template.name
        if writer == "chat":
            writer = "the tokenizer's chat template"
        return (f"Rows are written as chats, by {writer}.",)

    def encode(self, records: Sequence[Record], answers: Sequence[str] | None = None) -> list[Encoded]:
        """Tokens and labels of each record, its answer replaced where `answers` are given.

        Raises one UserError with the place of every row that the template refuses or that leaves no answer
        within `max_length` tokens.
        """
        faults = Faults("The data")
        encoded = []
        for record, whole in zip(records, self._tokenize(records, answers), strict=True):
            try:
                encoded.append(self._fit(whole))
            except BadRow as fault:
                faults.add(fault.at(record.file, record.line))
        faults.raise_all()
        return encoded

    def _fit(self, whole: Encoded) -> Encoded:
        size, limit = len(whole.ids), self.max_length
        if size <= limit:
            return whole
        if self.long_rows == "refuse":
            raise BadRow(f"has {size} tokens, and data.max_length is {limit}", LENGTH_HINT)
        if whole.runs[-1][0] >= limit:
            raise BadRow(
                f"has {whole.runs[-1][0]} tokens before the answer, and data.max_length is {limit}", LENGTH_HINT
            )
        runs = tuple((start, min(end, limit)) for start, end in whole.runs if start < limit)
        return Encoded(whole.ids[:limit], runs, size - limit)

    def _tokenize(self, records: Sequence[Record], answers: Sequence[str] | None) -> list[Encoded]:
        """Every record at its full length, in one call of the tokenizer."""
        replaced: Sequence[str | None] = answers or [None] * len(records)
        rendered, faults = [], Faults("The data")
        for record, answer in zip(records, replaced, strict=True):
            try:
                rendered.append(self._render(record, answer))
            except BadRow as fault:
                faults.add(fault.at(record.file, record.line))
        faults.raise_all()
        if not rendered:  # a tokenizer gives an empty call an answer of another shape
            return []
        bounded = any(each.answers != ((0, len(each.text)),) for each in rendered)
        tokens = self.tokenizer(
            [each.text for each in rendered],
            add_special_tokens=False,
            return_offsets_mapping=bounded,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        offsets = tokens["offset_mapping"] if bounded else [()] * len(rendered)
        return [self._count(*row) for row in zip(tokens["input_ids"], offsets, rendered, strict=True)]

    def whole(self, records: Sequence[Record]) -> list[Encoded]:
        """Tokens and labels of each record at its full length, however long."""
        return self._tokenize(records, None)

    def _render(self, record: Record, answer: str | None) -> Rendered:
        if not record.prompt and not record.messages:
            text = answer
            if text is None:
                text = record.answer
            return Rendered(text, ((0, len(text)),))
        return self.template.render(record, answer)

    def _count(self, ids: Sequence[int], offsets: Offsets, rendered: Rendered) -> Encoded:
        starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
        lead = 0
        if not rendered.opened:
            ids, lead = (*self._lead, *ids), len(self._lead)
        runs = []
        if offsets:
            for begin, stop in rendered.answers:
                first = lead + bisect_right(ends, begin)  # the first token that reaches into the answer
                runs.append((max(first, 1), lead + bisect_left(starts, stop)))
        if not rendered.closed:
            ids = (*ids, self.eos_id)
            first, _ = (runs or [(max(lead, 1), 0)])[-1]
            runs[-1:] = [(first, len(ids))]
        return Encoded(tuple(ids), tuple(runs))


LENGTH_HINT = "Raise data.max_length, shorten the row, or choose another data.long_rows."


def _leading_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """What the tokenizer puts in front of every text by itself: mostly a beginning-of-sequence token, or nothing."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full)):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start])
    return ()
