from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dualoptim_cli.evaluate.results import Results, Score
from dualoptim_cli.record import hashing, ledger
from dualoptim_cli.record.likeness import differences, open_run, settings_that_differ
from dualoptim_cli.report import comparison
from dualoptim_cli.report.tables import formats
from tests.record.finished import finish
from tests.report.test_page import Reader


def results(forget: float, utility: float, **more: Any) -> dict[str, Any]:
    attacked = more.pop("attacks", {})
    if attacked:
        more["attacks"] = list(attacked)
    return Results(
        {"forget": {"rougeL": Score(forget, forget - 0.1, forget + 0.1, 2, "lower"), "prob": Score(forget, n=2)}},
        summary={"utility": Score(utility, utility - 0.05, utility, 2)},
        attacks={name: {"forget": {"rougeL": Score(value, n=2)}} for name, value in attacked.items()},
        settings={"rows": 200, "seed": 0, "measured": {"forget": 2}, **more},
    ).to_json()


def make(folder: Path, name: str, forget: float = 0.2, lr: float = 1e-3, **more: Any) -> Path:
    """A finished run below a folder of its own, with what it found."""
    place = folder / name
    place.mkdir()
    run, key = finish(place)
    record = ledger.read(run)
    config = {**record.config, "optimizer": {**record.config["optimizer"], "lr": lr}}
    metrics = {"before": results(0.9, 0.99), "after": results(forget, 0.95, **more)}
    ledger.write(run, record.with_(metrics=metrics, config=config, data=_same_source(record, folder)), key)
    run.rename(place / name)
    hashing.key_file(run).rename(hashing.key_file(place / name))
    return place / name


def _same_source(record: Any, folder: Path) -> Any:
    """Both runs read one file, each with a key of its own."""
    shared = folder / "forget.jsonl"
    if not shared.exists():
        shared.write_bytes(Path(record.data["forget"].source).read_bytes())
    return {"forget": record.data["forget"].model_copy(update={"source": str(shared)})}


def unlike(*runs: Path) -> list[str]:
    return differences([open_run(run) for run in runs])


def test_runs_that_differ_in_settings_only_are_alike(tmp_path: Path) -> None:
    a, b = make(tmp_path, "a"), make(tmp_path, "b", lr=2e-3)
    assert unlike(a, b) == []
    assert settings_that_differ([open_run(a), open_run(b)])["optimizer.lr"] == [1e-3, 2e-3]


def test_metric_settings_that_differ_are_named(tmp_path: Path) -> None:
    found = unlike(make(tmp_path, "a"), make(tmp_path, "b", max_new_tokens=32))
    assert found == ["a and b differ in how they were measured: max_new_tokens is not set and 32."]


def test_attacks_matter_only_where_both_runs_had_some(tmp_path: Path) -> None:
    none, one, two = (
        make(tmp_path, "a"),
        make(tmp_path, "x", attacks={"x": 0.5}),
        make(tmp_path, "xy", attacks={"x": 0.5, "y": 0.5}),
    )
    assert unlike(none, one) == []
    assert unlike(one, two) == ["x and xy differ in how they were measured: attacks is x and x, y."]


def test_seed_matters_only_where_rows_were_sampled(tmp_path: Path) -> None:
    assert unlike(make(tmp_path, "a"), make(tmp_path, "b", seed=1)) == []
    sampled = {"measured": {"forget": 1}}
    found = unlike(make(tmp_path, "c", **sampled), make(tmp_path, "d", seed=1, **sampled))
    assert found == ["c and d differ in how they were measured: seed is 0 and 1."]


def test_models_that_differ_are_named(tmp_path: Path) -> None:
    a, b = make(tmp_path, "a"), make(tmp_path, "b")
    record = ledger.read(b)
    other = record.model.before.model_copy(update={"digest": "0" * 64})
    ledger.write(b, record.with_(model=record.model.model_copy(update={"before": other})), None)
    assert unlike(a, b) == ["a and b began with different models (tiny, tiny)."]


def change(run: Path, **changes: Any) -> None:
    record = ledger.read(run)
    part = record.data["forget"].model_copy(update=changes)
    ledger.write(run, record.with_(data={"forget": part}), None)


def test_data_of_two_keys_is_compared_by_content_while_it_is_there(tmp_path: Path) -> None:
    a, b = make(tmp_path, "a"), make(tmp_path, "b")
    copy = tmp_path / "elsewhere" / "forget.jsonl"
    copy.parent.mkdir()
    copy.write_bytes((tmp_path / "forget.jsonl").read_bytes())
    change(b, source=str(copy))
    assert unlike(a, b) == [], "another name, the same rows"
    copy.write_text(copy.read_text().replace("Ada", "Eve"))
    assert unlike(a, b) == [f"a and b differ in the rows of forget ({tmp_path / 'forget.jsonl'}, {copy})."]


def test_data_that_is_gone_is_compared_by_name_rows_and_bytes(tmp_path: Path) -> None:
    a, b = make(tmp_path, "a"), make(tmp_path, "b")
    (tmp_path / "forget.jsonl").unlink()
    assert unlike(a, b) == []
    change(b, rows=3)
    assert "differ in the rows of forget" in unlike(a, b)[0]


def test_set_that_only_one_run_has_is_named(tmp_path: Path) -> None:
    a, b = make(tmp_path, "a"), make(tmp_path, "b")
    record = ledger.read(b)
    ledger.write(b, record.with_(data={**record.data, "holdout": record.data["forget"]}), None)
    assert unlike(a, b) == ["a and b differ in their data: only one has holdout."]


@pytest.mark.parametrize("width", [60, 120])
def test_table_has_a_row_for_each_run_with_its_worst_attack(tmp_path: Path, width: int) -> None:
    runs = [make(tmp_path, "a", attacks={"int4": 0.31, "relearn": 0.47}), make(tmp_path, "b", 0.3)]
    lines = formats.render(comparison.table([open_run(run) for run in runs]), "text", width=width).splitlines()
    interval = width == 120
    cells = ["a", "0.200", *(["[0.100,", "0.300]"] if interval else []), "0.200", "0.950"]
    assert lines[2].split()[: len(cells)] == cells
    assert lines[2].split()[-4:] == ["0.470", "1/1", "60", "s"]
    assert lines[3].split()[-4:] == ["–", "1/1", "60", "s"]


def test_trade_off_shows_every_run_and_the_model_as_it_was(tmp_path: Path) -> None:
    runs = [open_run(make(tmp_path, name, value)) for name, value in (("a", 0.2), ("b", 0.4))]
    scatter = comparison.scatter(runs)
    assert scatter
    assert {name: x.value for name, (x, _) in scatter.points.items()} == {"a": 0.2, "b": 0.4, "before": 0.9}
    assert scatter.hollow == {"before"}
    assert scatter.lowest == 0.8
    assert scatter.across.startswith("forget.rougeL")


def test_runs_without_such_scores_have_no_trade_off(tmp_path: Path) -> None:
    runs = [open_run(make(tmp_path, name)) for name in "ab"]
    empty = Results({"one": {"prob": Score(0.5)}}).to_json()
    bare = [type(run)(run.path, run.record.with_(metrics={"before": empty, "after": empty})) for run in runs]
    assert comparison.scatter(bare) is None
    Reader(comparison.render(bare, []))


def test_page_names_what_makes_runs_unlike(tmp_path: Path) -> None:
    runs = [open_run(make(tmp_path, "a<script>")), open_run(make(tmp_path, "b", lr=2e-3))]
    read = Reader(comparison.render(runs, ["They are <b>unlike</b>."]))
    assert "They are <b>unlike</b>." in read.words
    assert "These runs are not alike" in read.words
    assert "optimizer.lr" in read.words
    assert "before" in read.words
    assert "script" not in read.tags


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in "xy":
        (tmp_path / name).mkdir()
    runs = [open_run(make(tmp_path / "x", "run2")), open_run(make(tmp_path / "y", "run2"))]
    told = comparison.to_json(runs, [])
    assert [each["name"] for each in told["runs"]] == ["run2", "run2 (2)"]
    json.dumps(told, allow_nan=False)
