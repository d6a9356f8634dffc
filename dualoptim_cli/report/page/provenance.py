"""The part of a page that says where a result comes from: model, data, settings, sessions, machine, files, changes."""

from __future__ import annotations

from dualoptim_cli import text
from dualoptim_cli.record.manifest import Data, Model, RunRecord, Session
from dualoptim_cli.report.figures.svg import clean
from dualoptim_cli.report.page.markup import (
    digest,
    facts,
    flatten,
    folded,
    paragraph,
    part,
    section,
    table,
)

# The parts of a record that have their place on the page. What comes to be recorded besides is shown by its name.
SHOWN = frozenset(
    "schema about run request_id status verdict began ended seconds steps metrics gates not_claimed model data "
    "sessions earlier config origins chosen reproducible files amendments versions hardware seeds "
    "computed_by".split()
)

CHECK = "sha256sum -c record.json.sha256 · dualopt verify RUN"


def summary(record: RunRecord) -> dict[str, str]:
    """What a reader must know first: which request, which model, what was to go and to stay, and when."""
    size = text.shown(record.model.parameters or None, lambda count: f" ({text.thousands(count)} parameters)")
    rows = {
        name.capitalize(): f"{text.thousands(part.rows)} rows of {part.source}, {part.use}"
        for name, part in record.data.items()
    }
    lines = {
        "Request": record.request_id,
        "Model": record.model.name + size,
        **rows,
        "Training": _training(record),
        "Began": record.began,
        "Ended": record.ended,
        "Run": record.run,
    }
    return {name: value for name, value in lines.items() if value}


def of(record: RunRecord) -> str:
    """Every section on where the result comes from; what a record holds besides follows under its own name."""
    plain = record.to_json()
    others = {key: value for key, value in plain.items() if key not in SHOWN}
    machine = "".join(f"<div>{part(key.capitalize(), facts(plain[key]))}</div>" for key in ("versions", "hardware"))
    seeds = f"<div>{part('Seeds', facts(record.seeds))}</div>"
    used = f'<div class="columns">{machine}{seeds}</div>'
    if record.computed_by:
        used += part("Computed by other runs of the sweep", facts(record.computed_by))
    if others:
        used += part("Others", facts(others))
    return (
        section("What was used", _model(record.model) + _data(record.data) + used)
        + section("What was done, and when", _sessions(record) + _earlier(record) + _amendments(record))
        + section("How to check this record", _check(record))
        + section("What was asked, in full", _settings(record))
    )


def _training(record: RunRecord) -> str:
    if record.steps is None:
        return ""
    duration = text.shown(record.seconds, lambda seconds: f" in {text.took(seconds)}")
    return f"{text.thousands(record.steps)} steps, the whole run{duration}"


def _model(model: Model) -> str:
    """The model's facts, and the hashes of its files before and after."""
    states = {"before": model.before}
    if model.after is not None:
        states["after"] = model.after
    rows = []
    for side, state in states.items():
        for name, file in state.files.items():
            rows.append([side, f"<code>{clean(name)}</code>", text.size(file.bytes), digest(file.sha256)])
    plain = model.model_dump(exclude={"before", "after"})
    digests = {f"digest {side}": state.digest for side, state in states.items()}
    hashes = table(["when", "file", "size", "SHA-256"], rows)
    return part("Model", facts({**plain, **digests}) + folded(f"SHA-256 of the model's files ({len(rows)})", hashes))


def _data(data: dict[str, Data]) -> str:
    """Each set of rows with its keyed hash; the hashes of single rows are counted, and stand in the record."""
    rows, notes, columns = [], [], {}
    for name, each in data.items():
        count = text.thousands(each.rows)
        rows.append([clean(name), digest(each.source), count, clean(each.use), _same(each), digest(each.before.hmac)])
        if each.rows_hmac:
            number = len(each.rows_hmac)
            hashed = "rows of {} are hashed one by one in record.json, with the key that its owner keeps."
            notes.append(paragraph(f"{number} {hashed.format(name)}"))
        if each.columns:
            columns[name] = each.columns
    header = ["set", "source", "rows", "use", "during the run", "keyed hash (HMAC-SHA256)"]
    body = table(header, rows) + "".join(notes)
    if columns:
        body += folded("Columns that were read", facts(columns))
    return part("Data", body)


def _same(data: Data) -> str:
    if data.after is None:
        return ""
    if data.before == data.after:
        return "unchanged"
    return "changed"


def _sessions(record: RunRecord) -> str:
    rows = []
    for each in record.sessions:
        last = text.shown(each.last_step, str)
        rows.append([clean(each.began), clean(each.ended or "not noted"), str(each.after_step), last, _ending(each)])
    return part("Sessions", table(["began", "ended", "after step", "last step", "how it ended"], rows))


def _ending(session: Session) -> str:
    if session.how == "running":
        return "killed, or still running"
    return session.how + text.shown(session.exit_code, lambda code: f" (exit {code})")


def _earlier(record: RunRecord) -> str:
    if not record.earlier:
        return part("Earlier deletions", paragraph("None is known: the model bears no mark of an earlier run."))
    rows = []
    for each in record.earlier:
        request = clean(each.request_id or "not named")
        outcome, model = "a gate failed", "changed since"
        if each.passed:
            outcome = "gates passed"
        if not each.checked:
            outcome += " (as the model says, not checked)"
        if each.unchanged:
            model = "unchanged since"
        record_digest = digest(each.record_sha256 or "the record was not beside the model")
        rows.append([request, outcome, model, digest(each.run), record_digest])
    header = ["request", "outcome", "its model", "run", "SHA-256 of its record"]
    return part("Earlier deletions, which this model came from", table(header, rows))


def _amendments(record: RunRecord) -> str:
    rows = []
    for each in record.amendments:
        details = [f"{clean(name)} <code>{clean(value)}</code>" for name, value in flatten(each.details)]
        rows.append([clean(each.at), clean(each.what), "<br>".join(details), digest(each.previous_sha256)])
    return part("After the run", table(["at", "what", "details", "SHA-256 of the record before"], rows))


def _check(record: RunRecord) -> str:
    same = record.reproducible
    if same.bit_for_bit:
        varies = ", ".join(name.replace("\\.", ".") for name in same.varies)
        words = f"The same command and seed give the same bits on {same.conditions}, apart from {varies}."
    else:
        words = "This run was not on a CPU: the same command and seed need not give the same bits."
    rows = [
        [f"<code>{clean(name)}</code>", text.size(file.bytes), digest(file.sha256)]
        for name, file in record.files.items()
    ]
    files = folded(f"Files of this run besides this page ({len(rows)})", table(["file", "size", "SHA-256"], rows))
    return f"<p><code>{clean(CHECK)}</code></p>{paragraph(words)}{files}"


def _settings(record: RunRecord) -> str:
    """Every setting, where it came from, and what stands behind an "auto"."""
    rows = []
    for name, value in flatten(record.config):
        origin = record.chosen.get(name) or record.origins.get(name, "default")
        rows.append([clean(name), f"<code>{clean(value)}</code>", clean(origin)])
    return table(["setting", "value", "from"], rows, "facts")
