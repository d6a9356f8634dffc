"""The part of a page that says where a result comes from: model, data, settings, sessions, machine, files, changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dualoptim_cli import text
from dualoptim_cli.report.figures.svg import clean
from dualoptim_cli.report.page.markup import facts, flatten, folded, part, said, section, table

TOLD_ELSEWHERE = frozenset(
    "schema about run request_id status verdict began ended seconds steps command metrics gates not_claimed model data "
    "sessions earlier config origins chosen reproducible files amendments".split()
)
CHECK = "sha256sum -c record.json.sha256 · dualopt verify RUN"


def summary(record: Mapping[str, Any]) -> dict[str, str]:
    """What a reader must know first: which request, which model, what was to go and to stay, and when."""
    model = _mapping(record.get("model"))
    data = _mapping(record.get("data"))
    found = {
        "Request": record.get("request_id"),
        "Model": f"{model['name']}{_size(model)}" if model.get("name") else record.get("model"),
        **{name.capitalize(): _rows(part) for name, part in data.items() if isinstance(part, Mapping)},
        "Training": _training(record),
        "Began": record.get("began"),
        "Ended": record.get("ended"),
        "Run": record.get("run"),
    }
    return {name: str(value) for name, value in found.items() if value and not isinstance(value, Mapping)}


def of(record: Mapping[str, Any]) -> str:
    """Every section on where the result comes from; what a record holds besides follows under its own name."""
    others = {key: value for key, value in record.items() if key not in TOLD_ELSEWHERE}
    named = {"versions": "Versions", "hardware": "Hardware", "seeds": "Seeds"}
    machine = "".join(f"<div>{part(title, facts(others.pop(key, None) or {}))}</div>" for key, title in named.items())
    used = f'<div class="columns">{machine}</div>' + part("Others", facts(others) if others else "")
    return (
        section("What was used", _model(record.get("model")) + _data(record.get("data")) + used)
        + section("What was done, and when", _sessions(record) + _earlier(record) + _amendments(record))
        + section("How to check this record", _check(record))
        + section("What was asked, in full", _settings(record))
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _rows(part: Mapping[str, Any]) -> str:
    return f"{text.thousands(part.get('rows', 0))} rows of {part.get('source', '')}, {part.get('use', '')}"


def _size(model: Mapping[str, Any]) -> str:
    count = model.get("parameters")
    return f" ({text.thousands(count)} parameters)" if count else ""


def _training(record: Mapping[str, Any]) -> str:
    seconds = f" in {text.took(record['seconds'])}" if record.get("seconds") else ""
    return f"{text.thousands(record['steps'])} steps, the whole run{seconds}" if record.get("steps") else ""


def _model(model: Any) -> str:
    """The model's facts, and the hashes of its files before and after."""
    if not isinstance(model, Mapping):
        return part("Model", facts(model) if model else "")
    sides = {side: model[side] for side in ("before", "after") if isinstance(model.get(side), Mapping)}
    rest = {key: value for key, value in model.items() if key not in sides}
    digests = {f"digest {side}": state.get("digest") for side, state in sides.items()}
    rows = [
        [clean(side), f"<code>{clean(name)}</code>", text.size(entry.get("bytes", 0)), _code(entry.get("sha256"))]
        for side, state in sides.items()
        for name, entry in _mapping(state.get("files")).items()
    ]
    hashes = folded(f"SHA-256 of the model's files ({len(rows)})", table(["when", "file", "size", "SHA-256"], rows))
    return part("Model", facts({**rest, **digests}) + hashes)


def _data(data: Any) -> str:
    """Each set of rows with its keyed hash; the hashes of single rows are counted, and stand in the record."""
    if not isinstance(data, Mapping) or not all(isinstance(each, Mapping) for each in data.values()):
        return part("Data", facts(data) if data else "")
    rows = [
        [
            clean(name),
            _code(each.get("source", "")),
            clean(text.thousands(each.get("rows", 0))),
            clean(each.get("use", "")),
            clean(_same(each)),
            _code(_mapping(each.get("before")).get("hmac")),
        ]
        for name, each in data.items()
    ]
    counted = {name: len(each["rows_hmac"]) for name, each in data.items() if each.get("rows_hmac")}
    note = "".join(
        said(f"{count} rows of {name} are hashed one by one in record.json, with the key that its owner keeps.")
        for name, count in counted.items()
    )
    columns = {name: each["columns"] for name, each in data.items() if each.get("columns")}
    header = ["set", "source", "rows", "use", "during the run", "keyed hash (HMAC-SHA256)"]
    return part(
        "Data", table(header, rows) + note + folded("Columns that were read", facts(columns) if columns else "")
    )


def _same(each: Mapping[str, Any]) -> str:
    before, after = each.get("before"), each.get("after")
    return "" if not after else "unchanged" if before == after else "changed"


def _sessions(record: Mapping[str, Any]) -> str:
    rows = [
        [
            clean(each.get("began", "")),
            clean(each.get("ended") or "not noted"),
            clean(each.get("after_step", 0)),
            clean("" if each.get("last_step") is None else each["last_step"]),
            clean(_ending(each)),
        ]
        for each in record.get("sessions", [])
    ]
    return part("Sessions", table(["began", "ended", "after step", "last step", "how it ended"], rows))


def _ending(session: Mapping[str, Any]) -> str:
    how, code = session.get("how", ""), session.get("exit_code")
    return "killed, or still running" if how == "running" else f"{how} (exit {code})" if code is not None else how


def _earlier(record: Mapping[str, Any]) -> str:
    rows = [
        [
            clean(each.get("request_id") or "not named"),
            "gates passed" if each.get("passed") else "a gate failed",
            "unchanged since" if each.get("unchanged") else "changed since",
            _code(each.get("run")),
            _code(each.get("record_sha256") or "the record was not beside the model"),
        ]
        for each in record.get("earlier", [])
    ]
    header = ["request", "outcome", "its model", "run", "SHA-256 of its record"]
    if not rows and "earlier" in record:
        return part("Earlier deletions", said("None is known: the model bears no mark of an earlier run."))
    return part("Earlier deletions, which this model came from", table(header, rows))


def _amendments(record: Mapping[str, Any]) -> str:
    rows = [
        [
            clean(each.get("at", "")),
            clean(each.get("what", "")),
            "<br>".join(f"{clean(name)} <code>{clean(value)}</code>" for name, value in flatten(each.get("details"))),
            _code(each.get("previous_sha256")),
        ]
        for each in record.get("amendments", [])
    ]
    return part("After the run", table(["at", "what", "details", "SHA-256 of the record before"], rows))


def _check(record: Mapping[str, Any]) -> str:
    same = _mapping(record.get("reproducible"))
    if not same and not record.get("files"):
        return ""
    if same.get("bit_for_bit"):
        told = f"The same command and seed give the same bits on {same.get('conditions', 'the same machine')}."
        varies = (str(key).replace("\\.", ".") for key in same.get("varies", []))
        told += f" What varies all the same: {', '.join(varies)}."
    else:
        told = "This run was not on a CPU: the same command and seed need not give the same bits."
    files = _mapping(record.get("files"))
    rows = [
        [f"<code>{clean(name)}</code>", text.size(entry.get("bytes", 0)), _code(entry.get("sha256"))]
        for name, entry in files.items()
    ]
    listed = folded(f"Files of this run besides this page ({len(rows)})", table(["file", "size", "SHA-256"], rows))
    return f"<p><code>{clean(CHECK)}</code></p>" + (said(told) if same else "") + listed


def _settings(record: Mapping[str, Any]) -> str:
    """Every setting, where it came from, and what stands behind an "auto"."""
    origins, chosen = _mapping(record.get("origins")), _mapping(record.get("chosen"))
    rows = [
        [clean(name), f"<code>{clean(value)}</code>", clean(chosen.get(name) or origins.get(name, "default"))]
        for name, value in flatten(record.get("config", {}))
        if name
    ]
    return table(["setting", "value", "from"], rows, "facts")


def _code(value: Any) -> str:
    return f'<code class="hash">{clean(value)}</code>' if value else ""
