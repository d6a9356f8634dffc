"""The ruler of a job: every model is measured, attacked and judged on the same rows, in the same way."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from dualoptim_cli.data import Encoder, Examples
from dualoptim_cli.evaluate.attacks import attack
from dualoptim_cli.evaluate.evaluator import measure, report_phase
from dualoptim_cli.evaluate.gates import Gate, Judgment, default_gates, judge, keep_disagreements
from dualoptim_cli.evaluate.judges import JUDGES, Judge
from dualoptim_cli.evaluate.observe import Observer
from dualoptim_cli.evaluate.perplexity import perplexity, text_losses
from dualoptim_cli.evaluate.profile import in_form_of
from dualoptim_cli.evaluate.results import Results, Sets
from dualoptim_cli.evaluate.scores import set_seed
from dualoptim_cli.events import Note, OnEvent
from dualoptim_cli.job.opening import Opened
from dualoptim_cli.job.phases import phase
from dualoptim_cli.job.shared import Shared
from dualoptim_cli.model.load import Loaded, Located, load
from dualoptim_cli.model.locate import locate
from dualoptim_cli.objectives.reference import at_rest
from dualoptim_cli.plan import auto_lr
from dualoptim_cli.record.lineage import model_state

KNOWN_PROBABILITY, KNOWN_RECALL = 0.1, 0.3
"""A model below both on the forget rows has nothing to forget. On the scale of the lab models: one that never saw
the rows has .002 and .12, one that knows them .995 and .98."""


@dataclass(frozen=True)
class Ruler:
    """Measures, attacks and judges the models of a job.

    `profile` names another program whose conventions are taken.
    `judges` rate continuations; `reference` is what a model retrained without the forget rows scores.
    """

    opened: Opened
    on_event: OnEvent
    judges: Sequence[Judge] = field(default=())
    reference: Results | None = None
    profile: str | None = None

    @classmethod
    def of(
        cls, opened: Opened, on_event: OnEvent, shared: Shared | None = None, *, profile: str | None = None
    ) -> Ruler:
        """Load the judging models and measure the reference, which must be gone before the model is loaded.

        Where a run of the same sweep has measured it, its scores are in `shared`.
        """
        judges: list[Judge] = []
        for kind, name in opened.brief.judges.items():
            with phase(f"Loading the {kind} model", on_event):
                judges.append(JUDGES[kind].load(name, opened.refusals))
        ruler = cls(opened, on_event, judges, profile=profile)
        if opened.reference is None:
            return ruler
        shared, located = shared or Shared(None, on_event), opened.reference
        results = shared.results(
            "reference",
            lambda: shared.measurement(opened, model_state(*located.parts).digest, None),
            lambda: ruler.measure_other(located, "the reference"),
        )
        return replace(ruler, reference=results)

    def measure(
        self,
        loaded: Loaded,
        examples: Mapping[str, Examples],
        name: str,
        *,
        before: Results | None = None,
        is_before: bool = False,
    ) -> Results:
        """Measure a loaded model on every set, in a phase of that name.

        What it still mentions is counted of the rows that `before` answered, or of its own if it `is_before`.
        """
        config = self.opened.brief.config
        results = measure(
            loaded.model,
            examples,
            rows=config.eval.rows,
            seed=config.eval.seed,
            forget=self.opened.brief.forget,
            max_new_tokens=config.eval.max_new_tokens,
            batch_size=config.eval.batch_size,
            min_k=self.opened.brief.min_k,
            reference=self.reference,
            judges=self.judges,
            refusals=self.opened.refusals,
            again=self.opened.again,
            general=self._general(loaded),
            mixed_precision=config.model.mixed_precision,
            named=before.named if before else None,
            is_before=is_before,
            on_event=self.on_event,
            full_length=self.profile is not None,
            phase=name,
        )
        if self.profile is None:
            return results
        return in_form_of(self.profile, results, forget=self.opened.brief.forget)

    def _general(self, loaded: Loaded) -> Examples | None:
        """The plain text as windows of this model's tokens."""
        data = self.opened.brief.config.data
        if self.opened.general is None:
            return None
        encoder = Encoder(loaded.tokenizer, template=data.template, max_length=data.max_length, long_rows="cut")
        return Examples(self.opened.general, encoder)

    def measure_other(
        self,
        located: Located,
        what: str,
        more: Callable[[Loaded], Sets] = lambda _: {},
        *,
        is_before: bool = False,
    ) -> Results:
        """Load a model, measure it with its own tokenizer, and free its memory. `more` measures sets of its own."""
        loaded = self.load(located, what)
        examples = self.opened.encode(loaded.tokenizer)
        results = self.measure(loaded, examples, f"Measuring {what}", is_before=is_before)
        results = replace(results, sets={**results.sets, **more(loaded)})
        del loaded, examples  # two models at a time do not fit where one just does
        gc.collect()
        torch.cuda.empty_cache()
        return results

    def load(self, located: Located, what: str) -> Loaded:
        """Load a model that is only measured."""
        how = self.opened.brief.config.model.model_dump(
            include={"revision", "dtype", "device", "load_in", "trust_remote_code"}
        )
        with phase(f"Loading {what}", self.on_event):
            return load(located, **how)

    def attack(
        self, names: Sequence[str], loaded: Loaded, examples: Mapping[str, Examples], results: Results
    ) -> Results:
        """The results with what each attack brings back; the attacks work on copies of the model.

        Relearning runs at the rate that `lr: auto` would choose for a model of this width, whatever the run's was.
        """
        if not names:
            return results
        config = self.opened.brief.config
        lr = float(auto_lr(self.opened.model.width).value)
        recovered = attack(
            loaded.model,
            names,
            examples,
            forget=self.opened.brief.forget,
            rows=config.eval.rows,
            seed=config.eval.seed,
            lr=lr,
            max_new_tokens=config.eval.max_new_tokens,
            batch_size=config.eval.batch_size,
            mixed_precision=config.model.mixed_precision,
            on_event=self.on_event,
        )
        settings = {**results.settings, "attacks": list(names), "relearn_lr": lr}
        return replace(results, attacks=recovered, settings=settings)

    def rate_answers(self, results: Results, loaded: Loaded) -> Results:
        """The results with `answer_ppl`: how this model rates the answers to rows to forget and of the hold-out."""
        config = self.opened.brief.config
        rated = {name: results.spoken[name] for name in self.opened.brief.rated if name in results.spoken}
        sets = dict(results.sets)
        units = sum(map(len, rated.values()))
        with at_rest(loaded.model), report_phase("Rating the answers", units, self.on_event) as advance:
            batch_size = config.eval.batch_size
            observer = Observer(
                loaded.model,
                loaded.tokenizer,
                max_new_tokens=1,
                batch_size=batch_size,
                advance=advance,
                mixed_precision=config.model.mixed_precision,
            )
            for name, answers in rated.items():
                seed = set_seed(config.eval.seed, f"{name}.answer_ppl")
                score = perplexity(text_losses(observer, answers), seed, "lower")
                sets[name] = {**sets[name], "answer_ppl": score}
        return replace(results, sets=sets)

    def rate_by_the_model_before(self, results: Results) -> Results:
        """The same by the model that the run began with, which is loaded once more: nothing else may be in memory."""
        adapter = self.opened.brief.adapter
        began = self.opened.model
        if adapter is not None:
            began = locate(str(adapter), trust_remote_code=self.opened.brief.config.model.trust_remote_code)
        return self.rate_answers(results, self.load(began, "the model as it was"))

    def judge(self, results: Results, before: Results | None) -> tuple[Judgment, ...]:
        """Hold the results against the job's gates."""
        return tuple(judge(self.gates(before), results, before=before, reference=self.reference))

    def gates(self, before: Results | None) -> list[Gate]:
        """The job's gates, or the usual ones where its settings leave them to us.

        Of a model that never knew the forget rows, the usual ones are only those that keep the rest.
        """
        gates = list(self.opened.brief.gates)
        if self.opened.brief.config.eval.gates == "default" and before is not None:
            forget, knew = self.opened.brief.forget, self.knew(before)
            for gate in default_gates(before, forget=forget):
                if knew or gate.path.partition(".")[0] not in forget:
                    gates.append(gate)
        return gates

    def warn_of_disagreements(self, before: Results, after: Results) -> None:
        """Warn of sets to keep whose likelihood and wording do not agree about what was kept."""
        for text in keep_disagreements(before, after, forget=self.opened.brief.forget):
            self.on_event(Note(text, "warning"))

    def knew(self, before: Results) -> bool | None:
        """Whether the model answered any of the rows to forget, or found their answers likely; None without any."""
        forget = self.opened.brief.forget
        if not forget:
            return None
        likely = max(float(before.score(f"{name}.prob").value or 0.0) for name in forget)
        return likely >= KNOWN_PROBABILITY or self._recall(before) >= KNOWN_RECALL

    def verdict(self, before: Results, judgments: Sequence[Judgment]) -> str:
        """One line: whether there was anything to forget, and how many gates hold."""
        line = count_gates(judgments)
        if self.knew(before) is not False:
            return line
        recall = f"ROUGE-L {self._recall(before):.2f}"
        return f"Nothing to forget: the model did not know these rows ({recall}), so none were forgotten. {line}"

    def _recall(self, results: Results) -> float:
        """The highest recall of a set to forget."""
        return max(float(results.score(f"{name}.rougeL").value or 0.0) for name in self.opened.brief.forget)


def count_gates(judgments: Sequence[Judgment]) -> str:
    """How many gates hold, and which do not; empty when there are none."""
    failed = [judgment.gate for judgment in judgments if not judgment.passed]
    if failed:
        return f"{len(failed)} of {len(judgments)} gates failed: {'; '.join(failed)}."
    return f"All {len(judgments)} gates hold." if judgments else ""
