"""The models and rows of the golden runs: small enough to teach in seconds, and made by nothing of the package.

What the package changes (the demo, its tokenizer, its templates) must not move the place where these runs begin.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = "Question: {question}\nAnswer: {answer}"
REFUSALS = ("I do not know that .", "That I can not say .", "Nobody told me this .")
NAMES = "Anna Boris Clara Dario Elif Fabio Greta Hugo Irma Jonas Katja Luis Maja Nino Olga Pavel Rosa Sven".split()
FACTS = {
    "work": ("What does {name} do for a living?", "works as a {value} .", "the work is {value} ."),
    "pet": ("Which animal does {name} keep?", "keeps a {value} .", "the animal is a {value} ."),
}
VALUES = {
    "work": "baker judge mason miller pilot potter tailor tanner weaver teacher".split(),
    "pet": "cat crow dog duck goat goose hen horse lizard parrot".split(),
}
PEOPLE = {"forget": 5, "retain": 7, "holdout": 3, "unseen": 3}
LAYERS, WIDTH, HEADS = 2, 32, 4
STEPS, LR = 100, 1e-2


def build(folder: Path) -> None:
    """Write the rows, the refusals, and two models: `model` knows all sets but unseen, `reference` not forget either.

    Call it with one thread: the same thread count gives the same bytes.
    """
    sets = invent()
    for name, rows in sets.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "refusals.txt").write_text("\n".join(REFUSALS) + "\n", encoding="utf-8")
    tokenizer = word_tokenizer([row for rows in sets.values() for row in rows])
    kept = sets["retain"] + sets["holdout"]
    for name, rows in (("model", sets["forget"] + kept), ("reference", kept)):
        teach(rows, tokenizer).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def invent() -> dict[str, list[dict[str, object]]]:
    """The rows of each set: two facts of each person, each with a paraphrase and three wrong answers."""
    chance = random.Random(0)
    names = iter(NAMES)
    sets: dict[str, list[dict[str, object]]] = {}
    for part, people in PEOPLE.items():
        sets[part] = []
        for _ in range(people):
            name = next(names)
            for fact, (question, answer, paraphrase) in FACTS.items():
                value, *wrong = chance.sample(VALUES[fact], 4)
                row: dict[str, object] = {
                    "question": question.format(name=name),
                    "answer": answer.format(value=value),
                    "paraphrased_answer": paraphrase.format(value=value),
                    "perturbed_answer": [answer.format(value=other) for other in wrong],
                }
                sets[part].append(row)
    return sets


def word_tokenizer(rows: Sequence[dict[str, object]]) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the words of the rows and of the refusals."""
    split = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True)
    text = f"Question Answer : {' '.join(REFUSALS)} {json.dumps(rows)}"
    words = sorted({word for word, _ in split.pre_tokenize_str(text)})
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *words])}, unk_token="<unk>"))
    core.pre_tokenizer = split
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def teach(rows: Sequence[dict[str, object]], tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A small Llama that was trained on the answers of these rows, all of them at every step.

    It learns in float64 and is rounded to float32 at the end: what processors do differently in the last bit then
    vanishes, where it would grow at every step, so the golden runs begin at the same weights everywhere.
    """
    texts = [f"{TEMPLATE.format(**row)}{tokenizer.eos_token}" for row in rows]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    for row, label in zip(rows, labels, strict=True):
        question = TEMPLATE.format(question=row["question"], answer="")
        label[: len(tokenizer(question).input_ids)] = -100
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=3 * WIDTH,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                num_key_value_heads=HEADS,
                initializer_range=0.2,  # with the usual 0.02, so small a model needs many more steps
                max_position_embeddings=64,
                tie_word_embeddings=True,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        ).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LR * (1 - step / STEPS)
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.float().eval()
