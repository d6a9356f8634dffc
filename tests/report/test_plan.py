from __future__ import annotations

import copy
import io
from typing import Any

import pytest
from rich.console import Console

from dualoptim_cli.report.tables.plan import screen

FOUND: dict[str, Any] = {
    "model": "org/model",
    "plan": {
        "steps": 240,
        "lr": 3.5e-4,
        "batch_size": 16,
        "micro_batch": 8,
        "choices": ["schedule.steps 240: 40 forget steps"],
        "parameters": 6_738_415_616,
        "dtype": "bfloat16",
        "trainable": 19_988_480,
        "memory": {
            "parts": {
                "weights": {"highest": 13_476_831_232, "at_peak": 13_476_831_232},
                "workspace of the step": {"highest": 4_194_304, "at_peak": 0},
            },
            "optimizer_state": {"float32": 3_000_000, "8-bit codes": 5_000_000},
            "peak": 13_476_831_232,
            "moment": "forward and backward pass",
            "reference_copy_elsewhere": 0,
            "rows_at_once": 8,
            "row_tokens": 131,
            "device": "cuda:0",
            "total": 24_000_000_000,
            "fits": True,
        },
        "disk": {
            "checkpoint": 71_613_696,
            "at_once": 2,
            "left": 10_230_528,
            "leaves": "adapter",
            "needed": 153_457_920,
            "free": 77_126_619_136,
            "suffices": True,
        },
        "advice": [],
    },
    "objectives": {
        "forget": {
            "loss": "npo",
            "rows": 200,
            "turns": 40,
            "rows_a_turn": 16,
            "tokens": 45_120,
            "counted": 26_243,
            "padding": 0.207,
            "passes": 3.2,
        }
    },
    "tokens": 45_120,
    "padding": 0.207,
    "samples": {
        "forget": [
            {
                "row": "forget.jsonl:17",
                "tokens": 60,
                "cut": 2,
                "runs": [
                    {"kind": "prompt", "tokens": 23},
                    {"kind": "answer", "tokens": 31},
                    {"kind": "prompt", "tokens": 4},
                    {"kind": "answer", "tokens": 2},
                ],
            }
        ]
    },
    "notes": ["forget: 200 rows of forget.jsonl"],
    "warnings": [],
    "refusal": None,
}


class Found:
    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told

    def to_json(self) -> dict[str, Any]:
        return self.told


def drawn(told: dict[str, Any], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(screen(Found(told)))
    output: Any = console.file
    return str(output.getvalue())


def changed(**parts: Any) -> dict[str, Any]:
    return copy.deepcopy(FOUND) | parts


def test_steps_tokens_padding_memory_and_disk_are_on_the_screen() -> None:
    seen = " ".join(drawn(FOUND).split())
    for told in (
        "240 steps on org/model, 6.74 B parameters in bfloat16, 20.0 M trained",
        "forget npo 40 200 3.20 45 120 26 243 21 %",
        "weights 13.5 GB 13.5 GB",
        "workspace of the step 4.19 MB together 13.5 GB",
        "8 rows of up to 131 tokens at once, fits: cuda:0 has 24.0 GB",
        "one checkpoint 71.6 MB 2 at one time",
        "adapter left at the end 10.2 MB",
        "needed 153 MB 77.1 GB free",
        "8-bit codes 5.00 MB",
    ):
        assert told in seen


def test_a_row_is_named_by_its_place_and_told_in_runs() -> None:
    assert "forget  forget.jsonl:17: 23 prompt + 31 answer + 4 prompt + 2 answer, 2 cut off" in drawn(FOUND)


def test_the_text_of_rows_cannot_steer_the_terminal() -> None:
    told = changed()
    told["samples"]["forget"][0]["runs"][0]["text"] = "who\x1b[2J\nis\u202e it?"
    seen = drawn(told)
    assert r"who\x1b[2J is\u202e it?" in seen
    assert "\x1b" not in seen


def test_what_would_not_begin_says_so_line_by_line() -> None:
    refusal = {"message": "2 faults were found:\n- memory\n- disk", "hint": "Buy more."}
    lines = [line.strip() for line in drawn(changed(refusal=refusal)).splitlines()]
    start = lines.index("Such a run would not begin.")
    assert lines[start + 1 : start + 5] == ["2 faults were found:", "- memory", "- disk", "Buy more."]


def test_ways_out_and_warnings_are_told() -> None:
    told = changed(warnings=["Memory may not suffice."])
    told["plan"]["advice"] = ["--8bit: 7.00 GB"]
    told["plan"]["memory"]["fits"] = False
    seen = " ".join(drawn(told).split())
    assert "With --8bit: 7.00 GB" in seen
    assert "does not fit, or only just" in seen
    assert "Memory may not suffice." in seen


@pytest.mark.parametrize("width", [80, 140])
def test_no_line_is_wider_than_the_screen(width: int) -> None:
    assert max(map(len, drawn(FOUND, width).splitlines())) <= width
