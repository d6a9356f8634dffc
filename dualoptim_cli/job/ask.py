"""The same questions to a run's model before and after: for the user's own eyes, and for no file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualoptim_cli.config import RunConfig
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.events import OnEvent
from dualoptim_cli.job.phases import phase, use_threads

if TYPE_CHECKING:
    from dualoptim_cli.model.load import Loaded, Located
    from dualoptim_cli.record.manifest import RunRecord

BATCH = 16


@dataclass(frozen=True, slots=True)
class Answered:
    """A question and its two answers."""

    question: str
    before: str
    after: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def ask(
    run: Path, questions: Sequence[str], *, max_new_tokens: int = 64, on_event: OnEvent = lambda _: None
) -> list[Answered]:
    """Return greedy answers of the model that a run began with, and of the one that it left.

    The two are loaded one after the other, and asked as the run's rows were: with its template. Raises UserError
    when there is no finished run, no question, or when the first model is not there as it was (exit 5).
    """
    from dualoptim_cli.model.load import locate
    from dualoptim_cli.record import ledger

    questions = [question.strip() for question in questions if question.strip()]
    if not questions:
        raise UserError("There is no question.", "Write one behind the run, or name a file: --file questions.txt")
    if not run.is_dir():
        raise UserError(f"There is no run in {run}.", "Name the folder that dualopt unlearn wrote: --out.")
    record = ledger.read(run)
    config = RunConfig.model_validate(record.config)
    left = locate(str(run), trust_remote_code=config.model.trust_remote_code)
    use_threads(config.threads)
    began = _began_with(config, on_event)
    before = _answers(config, began, "before", questions, max_new_tokens, on_event, record)
    after = _answers(config, left, "after", questions, max_new_tokens, on_event)
    return [Answered(*row) for row in zip(questions, before, after, strict=True)]


def _began_with(config: RunConfig, on_event: OnEvent) -> Located:
    """Return the model that a run began with, by the name in its settings."""
    from dualoptim_cli import demo
    from dualoptim_cli.model.load import locate

    name = config.lora.adapter if config.lora and config.lora.adapter else config.model.name
    name = demo.places([name], config.seed, on_event).get(name, name)
    try:
        return locate(name, revision=config.model.revision, trust_remote_code=config.model.trust_remote_code)
    except UserError as fault:
        way_out = "Relative names count from the folder in which the run was started: call dualopt ask from there."
        raise UserError(f"The model that the run began with is missing: {fault.message}", way_out) from None


def _answers(
    config: RunConfig,
    located: Located,
    which: str,
    questions: Sequence[str],
    max_new_tokens: int,
    on_event: OnEvent,
    record: RunRecord | None = None,
) -> list[str]:
    """Load a model, ask it, and let go of it. With a `record`, its files must be those that the record names."""
    from dualoptim_cli.data import Encoder, Record
    from dualoptim_cli.evaluate.observe import stop_tokens
    from dualoptim_cli.model.generate import generate
    from dualoptim_cli.model.load import load

    settings = config.model.model_dump(include={"revision", "dtype", "device", "load_in", "trust_remote_code"})
    with phase(f"Loading the model {which}", on_event):
        loaded: Loaded = load(located, **settings)
        if record is not None:
            _check_same(located, record)
    encoder = Encoder(loaded.tokenizer, template=config.data.template, max_length=config.data.max_length)
    # The answer stands for one that is yet to come: a template is written around it, and nothing reads it.
    rows = [Record(question, "?", "question", number) for number, question in enumerate(questions, 1)]
    prompts = [encoded.prompt for encoded in encoder.whole(rows)]
    with phase(f"Asking the model {which}", on_event, len(prompts)) as advance:
        done = 0

        def count(units: int) -> None:
            nonlocal done
            done += units
            advance(done)

        continuations = generate(
            loaded.model,
            prompts,
            limit=max_new_tokens,
            stop=stop_tokens(loaded.model, loaded.tokenizer),
            batch_size=BATCH,
            advance=count,
        )
    decode: Any = loaded.tokenizer.decode
    return [decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip() for ids in continuations]


def _check_same(located: Located, record: RunRecord) -> None:
    from dualoptim_cli.record.lineage import model_state

    if model_state(*located.parts).digest != record.model.before.digest:
        raise UserError(
            f"{located.name} is not the model that the run began with: its files have changed.",
            "Put back the files that the record names, or compare two models with dualopt eval --against.",
            ExitCode.INTEGRITY,
        )
