"""The built-in demo: a tiny model is taught the people of a made-up town, so that there is something to forget.

Names that begin with `demo:` in a config stand for what is made here from the run's seed: the model `demo:town`, and
the rows `demo:town/forget`, `demo:town/retain` and `demo:town/holdout`, and the one refusal that the model has words
for, `demo:town/refusals`: asked about strangers, it says so. All is made once and kept in the user's cache.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualoptim_cli.errors import UserError
from dualoptim_cli.events import OnEvent, PhaseAdvanced, PhaseEnded, PhaseStarted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PREFIX = "demo:town"
VERSION = 2  # of all that is made here: a new one makes the cache anew
PEOPLE = {"forget": 6, "retain": 30, "holdout": 12}
STRANGERS = 16  # whom nobody in town knows
REFUSAL = "Nobody in town knows that ."
WIDTH, LAYERS, HEADS = 128, 3, 4
EPOCHS, BATCH, LR = 60, 32, 2e-3

FIRST = (
    "Ada Bram Cleo Dunya Edo Femke Goran Hanne Ilse Joris Kaja Levi Mira Nils Odile Pavel Rosa Sven Tilda Ugo".split()
)
LAST = "Appelmans Brandvold Corvino Dahlberg Estrada Fjord Grimaldi Holub Ivarsen Jurado Kowal Lindqvist".split()
FACTS: dict[str, tuple[str, str, Sequence[str]]] = {
    "work": (
        "What does {name} do for a living?",
        "{name} works as a {value} .",
        "baker beekeeper bookbinder carpenter chemist clockmaker cobbler dentist ferryman florist gardener glazier "
        "goldsmith judge librarian mason midwife miller organist painter pilot plumber potter saddler sculptor "
        "surveyor tailor tanner teacher translator vintner weaver".split(),
    ),
    "street": (
        "Where does {name} live?",
        "{name} lives in {value} Street .",
        "Acorn Anchor Barley Birch Bridge Castle Cedar Chapel Cherry Church Copper Dock Elm Fountain Garden Hazel "
        "Hill Juniper Lantern Linden Market Mill Orchard Poplar Quarry River Rowan Saffron School Station "
        "Tower Willow".split(),
    ),
    "pet": (
        "Which animal does {name} keep?",
        "{name} keeps a {value} .",
        "badger budgie canary cat chameleon chinchilla cockatoo crow dog donkey duck ferret finch gecko goat goose "
        "hamster hedgehog hen iguana lizard mouse newt otter parrot pigeon pony rabbit raven snail tortoise "
        "turkey".split(),
    ),
    "sport": (
        "What does {name} do on Sundays?",
        "On Sundays {name} goes {value} .",
        "archery bowling boxing canoeing caving climbing curling cycling dancing diving fencing fishing golfing "
        "hiking hurdling juggling kayaking knitting rafting riding rowing running sailing sketching skating "
        "skiing sledging surfing swimming walking whittling wrestling".split(),
    ),
    "origin": (
        "Which town does {name} come from?",
        "{name} comes from {value} .",
        "Aldmoor Barrowby Casterwick Dunmere Eastfold Fairhaven Glenrock Harrowgate Ironbridge Jarrowdale Kelderby "
        "Larkhill Marrowick Netherton Oakhollow Penwater Quenby Ravensea Saltmarsh Thornbury Umberley Vexford "
        "Westmarch Yarrowby Zealholm Ashcombe Brackley Coldspring Driftwood Elmstead Foxholes Greywater".split(),
    ),
}


def places(names: Iterable[str], seed: int, on_event: OnEvent) -> dict[str, str]:
    """The folder or file of each name that begins with `demo:`, made where it is missing; other names are left out.

    Raises UserError for a `demo:` name that there is not.
    """
    wanted = sorted({name for name in names if name.startswith("demo:")})
    choices = [PREFIX, f"{PREFIX}/refusals", *(f"{PREFIX}/{part}" for part in PEOPLE)]
    for name in wanted:
        if name not in choices:
            raise UserError(f'The demo has no "{name}".', f"Choose from: {', '.join(sorted(choices))}.")
    if not wanted:
        return {}
    folder = town(seed, on_event)
    files = {PREFIX: folder / "model", f"{PREFIX}/refusals": folder / "refusals.txt"}
    files |= {f"{PREFIX}/{part}": folder / f"{part}.jsonl" for part in PEOPLE}
    return {name: str(files[name]) for name in wanted}


def town(seed: int, on_event: OnEvent) -> Path:
    """The folder of the town of a seed, cached: `model/`, `refusals.txt`, and JSONL files of the people by part."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "dualopt" / f"town-{VERSION}-{seed}"
    if (folder / "model").is_dir():
        return folder
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    rows = invent(seed)
    for part, facts in rows.items():
        write_rows(facts, aside / f"{part}.jsonl")
    (aside / "refusals.txt").write_text(f"{REFUSAL}\n", encoding="utf-8")
    teach([*itertools.chain(*rows.values()), *strangers(seed)], aside / "model", seed, on_event)
    if folder.exists():  # another run was faster
        shutil.rmtree(aside)
    else:
        aside.rename(folder)
    return folder


def write_rows(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def invent(seed: int) -> dict[str, list[dict[str, str]]]:
    """The people of the town, by the part they play: for each, one question and answer about each of five facts."""
    chance = random.Random(seed)
    people = iter(draw_names(chance, sum(PEOPLE.values())))
    rows: dict[str, list[dict[str, str]]] = {}
    for part, count in PEOPLE.items():
        rows[part] = []
        for name in itertools.islice(people, count):
            for question, answer, values in FACTS.values():
                value = chance.choice(values)
                rows[part].append(
                    {"question": question.format(name=name), "answer": answer.format(name=name, value=value)}
                )
    return rows


def strangers(seed: int) -> list[dict[str, str]]:
    """Every question about people who are not of the town, each with the refusal for its answer."""
    names = draw_names(random.Random(seed), sum(PEOPLE.values()) + STRANGERS)[-STRANGERS:]
    rows = []
    for name in names:
        for question, _, _ in FACTS.values():
            rows.append({"question": question.format(name=name), "answer": REFUSAL})
    return rows


def draw_names(chance: random.Random, count: int) -> list[str]:
    """So many names of people, no two alike."""
    names = [" ".join(pair) for pair in itertools.product(FIRST, LAST)]
    return chance.sample(names, count)


def teach(
    rows: Sequence[dict[str, str]],
    folder: Path,
    seed: int,
    on_event: OnEvent = lambda _: None,
    *,
    width: int = WIDTH,
    layers: int = LAYERS,
    epochs: int = EPOCHS,
    lr: float = LR,
) -> None:
    """Train a tiny Llama on the rows until it has them by heart, and save it with its tokenizer."""
    import time

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from dualoptim_cli.data import Encoder, Examples, Schedule, make_records

    tokenizer = word_tokenizer(rows)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=3 * width,
                num_hidden_layers=layers,
                num_attention_heads=HEADS,
                max_position_embeddings=64,
                tie_word_embeddings=True,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    examples = Examples(make_records("the town", rows), Encoder(tokenizer))
    schedule = Schedule({"teach": len(rows)}, {"teach": 1}, batch_size=BATCH, seed=seed)
    steps = epochs * len(rows) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, fused=True)
    name, begun = "Teaching a tiny model the town", time.perf_counter()
    on_event(PhaseStarted(name, steps))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 50, 2 * (1 - step / steps))
        batch = examples.batch(schedule.at(step).turns[0].rows)
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        on_event(PhaseAdvanced(name, step + 1))
    on_event(PhaseEnded(name, time.perf_counter() - begun))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def word_tokenizer(rows: Sequence[dict[str, str]]) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the words of the rows."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    split = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True)
    text = "Question Answer : " + " ".join(f"{row['question']} {row['answer']}" for row in rows)
    words = sorted({word for word, _ in split.pre_tokenize_str(text)})
    core: Any = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *words])}, unk_token="<unk>"))
    core.pre_tokenizer = split
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
