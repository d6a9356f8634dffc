"""The main job as one function: open, plan, measure, train, measure, attack, judge, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from dualoptim_cli.config import RunConfig
from dualoptim_cli.data import Examples
from dualoptim_cli.errors import UserError
from dualoptim_cli.evaluate.gates import check_measurable
from dualoptim_cli.evaluate.results import Results
from dualoptim_cli.events import Event, Note, OnEvent
from dualoptim_cli.files import check_apart, disk_errors_as_user_error
from dualoptim_cli.job.brief import Brief
from dualoptim_cli.job.identity import go_on, in_precision_of, settings_of
from dualoptim_cli.job.opening import open_inputs
from dualoptim_cli.job.outcome import Outcome
from dualoptim_cli.job.phases import phase, use_threads
from dualoptim_cli.job.planning import Planned, plan
from dualoptim_cli.job.recording import Recording, record_run
from dualoptim_cli.job.ruler import Ruler
from dualoptim_cli.job.samples import draw_samples
from dualoptim_cli.job.shared import Shared
from dualoptim_cli.job.training import Training
from dualoptim_cli.job.until import build_rule
from dualoptim_cli.model.load import Loaded, load
from dualoptim_cli.model.lora import attach, check_trainable
from dualoptim_cli.model.save import save_model
from dualoptim_cli.plan.needs import refuse_impossible, warnings
from dualoptim_cli.recipes import resolve, to_yaml
from dualoptim_cli.record.folder import RunFolder
from dualoptim_cli.train.checkpoint import check_identity
from dualoptim_cli.train.memory import oom_as_user_error


def unlearn(
    config: RunConfig,
    out: Path,
    *,
    force: bool = False,
    resume: bool = False,
    on_event: OnEvent = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    origins: Mapping[str, str] | None = None,
    samples: int = 0,
    shared: Path | None = None,
) -> Outcome:
    """Do the whole job and leave its result in `out`.

    `should_stop` is asked after every step; True saves a checkpoint and raises UserError with exit code 130.
    Raises UserError for every fault of settings, data, model or folder before the model is loaded where that is
    possible, and for training that stopped itself. `origins` says where each setting came from, for the record. The
    outcome has as many `samples` of questions with both answers. What other runs of the same model and rows have
    computed is taken from the folder `shared`, and kept there for them.
    """
    begun = time.perf_counter()
    brief = Brief.of(config)
    check_apart(out, brief.sources)  # before the folder is made or locked: nothing is touched
    use_threads(config.threads)
    folder = RunFolder(out)
    with folder.lock(), oom_as_user_error("While the model was loaded, measured or saved"):
        if resume and folder.finished and not config.checkpoint.keep_at_end:
            folder.forget_checkpoints()  # of a run that was killed between its last word and this
        folder.check(force=force, resume=resume)
        earlier = resolve(str(folder.config)).config if resume else None
        if earlier:
            config = in_precision_of(earlier, config)
            brief = replace(brief, config=config)
            check_identity(settings_of(earlier), settings_of(config))

        opened = open_inputs(brief, on_event)
        config = opened.brief.config
        check_apart(out, opened.sources)
        planned = plan(opened, out=folder.path, on_event=on_event)
        refuse_impossible(planned.needs)
        for choice in planned.plan.choices:
            on_event(Note(str(choice)))
        for text in warnings(planned.needs):
            on_event(Note(text, "warning"))
        share = Shared(shared, on_event)
        ruler = Ruler.of(opened, on_event, share)
        loaded = _load(planned, on_event)

        if not resume:  # only now is anything of an earlier run replaced: all that can be wrong with the input is past
            folder.begin(to_yaml(config))
        with record_run(folder, planned, loaded, origins or {}, resume=resume) as recording:
            share.bind(recording.record.run)
            recording.origins = share.origins
            if earlier:  # the record has found it to be the same run: what is refused has changed nothing
                go_on(folder, earlier, config)

            def on_training(event: Event) -> None:
                recording(event)
                on_event(event)

            for each in recording.record.earlier:
                if not each.passed:
                    unchecked = "" if each.checked else ", as it says itself"
                    text = f"The model comes from run {each.run[:8]}, whose gates failed{unchecked}."
                    on_event(Note(text, "warning"))
            before = _measure_before(ruler, folder, recording, loaded, planned.examples, share)
            knew = ruler.knew(before)
            if knew is False:
                text = "The model does not know the forget rows: there is nothing for it to forget."
                on_event(Note(text, "warning"))
            trained = Training.prepare(
                planned,
                loaded,
                folder,
                rule=build_rule(planned, ruler, loaded.model, before),
                shared=share,
                origin=recording.record.model.before.digest,
                key=recording.key,
                search=recording.search,
                on_event=on_training,
                should_stop=should_stop,
            ).run()
            weights = folder.path / ("adapter" if config.lora else "model")
            with phase("Saving the model", on_event), disk_errors_as_user_error("The model", folder.path):
                save_model(loaded, weights)
            after = ruler.measure(loaded, planned.examples, "Measuring after", before=before)
            after = ruler.attack(planned.attacks, loaded, planned.examples, after)
            if config.eval.answer_ppl:
                del loaded  # two models at a time may not fit
                after = ruler.rate_by_the_model_before(after)
            judgments = ruler.judge(after, before)
            ruler.warn_of_disagreements(before, after)
            verdict = ruler.verdict(before, judgments)
            if trained.stopped:
                verdict = f"{trained.stopped.message} {verdict}"
            outcome = Outcome(
                out=folder.path,
                before=before,
                after=after,
                reference=ruler.reference,
                judgments=judgments,
                verdict=verdict,
                knew=knew,
                steps=trained.steps,
                seconds=time.perf_counter() - begun,
                forget=brief.forget,
                samples=draw_samples(before, after, samples, forget=brief.forget, seed=config.seed),
            )
            folder.write_metrics(outcome.metrics())
            with phase("Writing the record", on_event), disk_errors_as_user_error("The record", folder.path):
                recording.mark(weights, passed=outcome.passed, verdict=verdict)
                recording.finish(outcome, keep_checkpoints=config.checkpoint.keep_at_end, stopped=trained.stopped)
        if not config.checkpoint.keep_at_end:
            folder.forget_checkpoints()
    if trained.stopped:
        raise trained.stopped
    return outcome


def _load(planned: Planned, on_event: OnEvent) -> Loaded:
    """The model as it will be trained: with an adapter beside it, or with weights that can be trained themselves."""
    config, opened = planned.brief.config, planned.opened
    how = config.model.model_dump(exclude={"name", "mixed_precision", "frozen_dtype", "frozen_device"})
    with phase("Loading the model", on_event):
        loaded = load(opened.model, **how, tokenizer=planned.tokenizer, keep_adapters=config.lora is not None)
        if config.lora:
            return attach(loaded, **config.lora.model_dump() | {"adapter": planned.brief.adapter}, seed=config.seed)
        check_trainable(loaded)
        return loaded


def _measure_before(
    ruler: Ruler,
    folder: RunFolder,
    recording: Recording,
    loaded: Loaded,
    examples: Mapping[str, Examples],
    shared: Shared,
) -> Results:
    """The measurement of the model as it was; a run that goes on has it on disk, another one of a sweep in `shared`.

    Raises UserError for gates that cannot hold, whatever training does.
    """
    measured = folder.read_metrics()
    if "before" in measured:
        return Results.from_json(measured["before"])

    def compute() -> Results:
        results = ruler.measure(loaded, examples, "Measuring before", is_before=True)
        return ruler.rate_answers(results, loaded) if ruler.opened.brief.config.eval.answer_ppl else results

    digest = recording.record.model.before.digest
    before = shared.results("before", lambda: shared.measurement(ruler.opened, digest, ruler.reference), compute)
    try:
        check_measurable(ruler.opened.brief.gates, before)
    except UserError:  # nothing was trained: the request can come back corrected
        recording.withdraw()
        folder.withdraw()
        raise
    if before.score("utility").value is None:
        no_yardstick = "No set to keep is measured, so the gate on utility will fail. Pass --retain or --holdout."
        ruler.on_event(Note(no_yardstick, "warning"))
    recording.measured(before)
    folder.write_metrics({"before": before.to_json()})
    return before
