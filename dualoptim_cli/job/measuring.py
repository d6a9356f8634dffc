"""The measurements of a job and what follows from them: what the model knew, attacks, gates, the verdict."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dualoptim_cli.config import RunConfig
from dualoptim_cli.errors import UserError, raise_all
from dualoptim_cli.events import Note, OnEvent
from dualoptim_cli.job.inputs import encode
from dualoptim_cli.job.phases import collected, phase
from dualoptim_cli.objectives import forgotten
from dualoptim_cli.plan import Plan, auto_lr

if TYPE_CHECKING:
    from dualoptim_cli.data import Examples, Records
    from dualoptim_cli.evaluate.gates import Gate, Judgment, Scope
    from dualoptim_cli.evaluate.judges import Judge
    from dualoptim_cli.evaluate.results import Results, Sets
    from dualoptim_cli.model.load import Loaded, Located
    from dualoptim_cli.record.folder import RunFolder

KNOWN_PROBABILITY, KNOWN_RECALL = 0.1, 0.3
"""A model below both on the forget rows has nothing to forget. On the scale of the lab models: one that never saw
the rows has .002 and .12, one that knows them .995 and .98."""

AFFORDABLE = 0.2  # of a run's passes: what attacks may take that nobody asked for
UNSEEN = "unseen"


def check_evaluation(config: RunConfig, scope: Scope | None = None) -> list[Gate]:
    """Find every fault of what is asked of the measurement, and return the gates that were asked for."""
    from dualoptim_cli.evaluate.attacks import choose_attacks

    scope = scope or scope_of(config)
    faults: list[UserError] = []
    gates: list[Gate] = []
    with collected(faults):
        gates = asked_gates(config, scope)
    with collected(faults):
        asked = [] if config.eval.attacks == "auto" else choose_attacks(config.eval.attacks)
        if asked and not any(name in scope.forget for name in scope.sets):
            hint = "Pass --forget FILE, or no --attacks."
            raise UserError("Attacks bring back forget rows, and there are none.", hint)
    raise_all(faults)
    return gates


def asked_gates(config: RunConfig, scope: Scope | None = None) -> list[Gate]:
    """The gates that were asked for, checked; none stand for the default ones, which follow the measurement."""
    from dualoptim_cli.evaluate.gates import check_gates

    texts = config.eval.gates if isinstance(config.eval.gates, list) else []
    return check_gates(texts, scope or scope_of(config))


def scope_of(config: RunConfig) -> Scope:
    """What an unlearning run will measure, as far as its settings tell."""
    from dualoptim_cli.evaluate.gates import Scope

    more = {"holdout": config.data.holdout, UNSEEN: config.data.unseen}
    return Scope(
        forget=forgotten(config.objectives),
        sets=(*config.objectives, *(name for name, source in more.items() if source)),
        has_reference=config.eval.reference is not None,
        judges=asked_judges(config),
        quantized=config.model.load_in is not None,
    )


def asked_judges(config: RunConfig) -> tuple[str, ...]:
    named = {"similarity": config.eval.similarity_model, "entailment": config.eval.entailment_model}
    return tuple(judge for judge, model in named.items() if model)


def load_judges(config: RunConfig) -> list[Judge]:
    """The judging models that were named, loaded; most runs have none."""
    from dualoptim_cli.data import load_refusals
    from dualoptim_cli.evaluate.judges import load_entailment, load_similarity

    found: list[Judge] = []
    if config.eval.similarity_model:
        found.append(load_similarity(config.eval.similarity_model))
    if config.eval.entailment_model:
        found.append(load_entailment(config.eval.entailment_model, load_refusals(config.data.refusals)))
    return found


def locate_reference(config: RunConfig) -> Located | None:
    """The reference's folder, checked; None when there is none."""
    from dualoptim_cli.model.load import locate

    name = config.eval.reference
    return locate(name, trust_remote_code=config.model.trust_remote_code) if name else None


def measure_reference(
    config: RunConfig, records: Mapping[str, Records], on_event: OnEvent, *, forget: Collection[str] = ("forget",)
) -> Results | None:
    """Measure the reference on the rows of the run, once and before the model itself is loaded; None without one."""
    located = locate_reference(config)
    if located is None:
        return None
    return measure_other(config, located, records, "the reference", on_event, forget=forget)


def measure_other(
    config: RunConfig,
    located: Located,
    records: Mapping[str, Records],
    what: str,
    on_event: OnEvent,
    *,
    reference: Results | None = None,
    forget: Collection[str] = ("forget",),
    more: Callable[[Loaded], Sets] = lambda _: {},
) -> Results:
    """Load a model, measure it on these rows with its own tokenizer, and let go of it. `more` measures more sets."""
    import torch

    def measured() -> Results:
        loaded = load_model(config, located, what, on_event)
        examples = encode(config, records, loaded.tokenizer, lambda _: None)
        name = f"Measuring {what}"
        results = measure_sets(config, examples, loaded, name, on_event, reference=reference, forget=forget)
        return replace(results, sets={**results.sets, **more(loaded)})

    found = measured()
    gc.collect()
    torch.cuda.empty_cache()
    return found


def load_model(config: RunConfig, located: Located, what: str, on_event: OnEvent) -> Loaded:
    """Load a model that is only measured."""
    from dualoptim_cli.model.load import load

    asked = config.model.model_dump(include={"revision", "dtype", "device", "load_in", "trust_remote_code"})
    with phase(f"Loading {what}", on_event):
        return load(located, **asked)


def measure_before(
    config: RunConfig,
    folder: RunFolder,
    examples: Mapping[str, Examples],
    loaded: Loaded,
    on_event: OnEvent,
    *,
    reference: Results | None = None,
    gates: Sequence[Gate] = (),
    forget: Collection[str] = ("forget",),
) -> Results:
    """The measurement of the model as it was; a run that goes on has it on disk.

    Raises UserError for gates that cannot hold, whatever training does.
    """
    from dualoptim_cli.evaluate.gates import check_measurable
    from dualoptim_cli.evaluate.results import Results

    known = folder.read_metrics()
    if "before" in known:
        return Results.from_json(known["before"])
    before = measure_sets(config, examples, loaded, "Measuring before", on_event, reference=reference, forget=forget)
    check_measurable(gates, before)
    if before.score("utility").value is None:
        no_yardstick = "No set to keep is measured, so the gate on utility will fail. Pass --retain or --holdout."
        on_event(Note(no_yardstick, "warning"))
    folder.write_metrics({"before": before.to_json()})
    return before


def measure_sets(
    config: RunConfig,
    examples: Mapping[str, Examples],
    loaded: Loaded,
    name: str,
    on_event: OnEvent,
    *,
    reference: Results | None = None,
    forget: Collection[str] = ("forget",),
) -> Results:
    """Measure a loaded model on every set, in a phase of that name."""
    from dualoptim_cli.evaluate.evaluator import measure

    return measure(
        loaded.model,
        examples,
        rows=config.eval.rows,
        seed=config.seed,
        forget=forget,
        max_new_tokens=config.eval.max_new_tokens,
        batch_size=config.eval.batch_size,
        reference=reference,
        judges=load_judges(config),
        on_event=on_event,
        phase=name,
    )


def plan_attacks(config: RunConfig, gates: Sequence[Gate], plan: Plan, forget_rows: int) -> tuple[list[str], str]:
    """Which attacks follow a run, and a sentence when that was decided for the user.

    Unasked, the quick ones run where the passes they take are under a fifth of the training's, forward and backward
    counted as three. An attack that a gate names always runs.
    """
    from dualoptim_cli.evaluate.attacks import QUICK, attack_passes, choose_attacks

    named = [gate.attack for gate in gates if gate.attack]
    if not forget_rows:
        return [], ""
    if config.eval.attacks != "auto":
        return list(dict.fromkeys([*choose_attacks(config.eval.attacks), *named])), ""
    rows = forget_rows if config.eval.rows == "all" else min(forget_rows, config.eval.rows)
    turns = len(config.objectives) if config.schedule.mode == "joint" else 1
    share = attack_passes(QUICK, rows) / (3 * plan.steps * plan.batch_size * turns)
    if share < AFFORDABLE:
        return list(dict.fromkeys([*QUICK, *named])), ""
    return list(dict.fromkeys(named)), (
        f"No attacks unasked: {', '.join(QUICK)} would take {share:.0%} of the passes of training, "
        f"and the limit is {AFFORDABLE:.0%}. Pass --attacks quick to run them."
    )


def attack_model(
    config: RunConfig,
    names: Sequence[str],
    examples: Mapping[str, Examples],
    loaded: Loaded,
    results: Results,
    on_event: OnEvent,
    *,
    forget: Collection[str] = ("forget",),
    width: int,
) -> Results:
    """The results with what each attack brings back; the attacks work on copies of the model.

    Relearning runs at the rate that `lr: auto` would choose for a model of this width, whatever the run's own was.
    """
    from dualoptim_cli.evaluate.attacks import attack

    if not names:
        return results
    lr = auto_lr(width).value
    found = attack(
        loaded.model,
        names,
        examples,
        forget=forget,
        rows=config.eval.rows,
        seed=config.seed,
        lr=lr,
        max_new_tokens=config.eval.max_new_tokens,
        batch_size=config.eval.batch_size,
        on_event=on_event,
    )
    return replace(results, attacks=found, settings={**results.settings, "attacks": list(names), "relearn_lr": lr})


def tell(
    before: Results, judgments: Sequence[Judgment], *, knew: bool | None, forget: Collection[str] = ("forget",)
) -> str:
    """One line of verdict: whether there was anything to forget, and how many gates hold."""
    word = count_gates(judgments)
    if knew is not False:
        return word
    recall = max(_recall(before, name) for name in forget)
    return (
        f"Nothing to forget: the model did not know these rows (ROUGE-L {recall:.2f}), so none were forgotten. {word}"
    )


def count_gates(judgments: Sequence[Judgment]) -> str:
    """How many gates hold, and which do not; nothing when there are none."""
    failed = [judgment.gate for judgment in judgments if not judgment.passed]
    if failed:
        return f"{len(failed)} of {len(judgments)} gates failed: {'; '.join(failed)}."
    return f"All {len(judgments)} gates hold." if judgments else ""


def usual_gates(before: Results, *, knew: bool | None, forget: Collection[str] = ("forget",)) -> list[Gate]:
    """The default gates; of a model that never knew the forget rows, only those that keep the rest."""
    from dualoptim_cli.evaluate.gates import default_gates

    gates = default_gates(before, forget=forget)
    return [gate for gate in gates if knew or gate.path.partition(".")[0] not in forget]


def _recall(results: Results, name: str) -> float:
    return float(results.score(f"{name}.rougeL").value or 0.0)


def knew_any(before: Results, forget: Collection[str] = ("forget",)) -> bool | None:
    """Whether the model answers any of the rows to forget, or finds their answers likely; None when there are none."""
    if not forget:
        return None
    likely = max(float(before.score(f"{name}.prob").value or 0.0) for name in forget)
    return likely >= KNOWN_PROBABILITY or max(_recall(before, name) for name in forget) >= KNOWN_RECALL
