"""SECURITY.md: every promise has tests, and the numbers of tries are those of the suites."""

from __future__ import annotations

import ast
import re

import pytest

from tests.cli import test_interrupts
from tests.conftest import ROOT
from tests.fuzz import test_fuzz

PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
TESTS = {
    "No pickle": (
        (
            "test_security.py",
            (
                "test_a_pickled_model_is_refused_and_never_unpickled",
                "test_nothing_unpickles_or_runs_text_as_code",
            ),
        ),
    ),
    "Only the model's own files": (
        (
            "model/test_weights.py",
            (
                "test_an_index_names_only_plain_safetensors",
                "test_what_is_loaded_is_what_is_hashed_and_no_more_is_loaded",
                "test_an_adapter_is_a_regular_file_of_its_folder",
            ),
        ),
    ),
    "No remote code": (("test_security.py", ("test_code_beside_a_model_runs_only_when_it_is_trusted",)),),
    "No network that you did not ask for": (("test_security.py", ("test_no_command_needs_a_network",)),),
    "Row text stays in": (
        (
            "test_canary.py",
            (
                "test_no_row_is_quoted_by_a_run_that_succeeds_nor_by_what_follows_it",
                "test_no_row_is_quoted_by_an_error_about_it",
                "test_a_crash_quotes_no_row_even_if_a_library_does",
            ),
        ),
    ),
    "Keyed hashes": (
        ("record/test_hashing.py", ("test_key_is_made_once_and_only_its_owner_may_read_it",)),
        (
            "record/test_folder.py",
            (
                "test_a_key_that_this_run_did_not_make_is_refused_and_left_as_it_is",
                "test_a_key_that_others_can_read_is_refused",
            ),
        ),
    ),
    "Files of a run stay in its folder": (
        ("test_canary.py", ("test_files_in_the_making_are_private_inside_the_run_and_gone_at_the_end",)),
        ("test_security.py", ("test_a_record_that_names_files_outside_leads_nowhere",)),
    ),
    "Nothing of yours is replaced": (
        (
            "record/test_folder.py",
            (
                "test_what_lies_in_place_of_the_lock_is_left_as_it_is",
                "test_a_folder_that_only_looks_like_a_run_is_not_replaced",
            ),
        ),
        (
            "record/test_purge.py",
            ("test_derived_files_that_a_link_leads_to_are_named_and_nothing_is_said_to_be_purged",),
        ),
    ),
    "A source is no place for a result": (
        ("test_apart.py", ("test_a_result_is_refused_where_its_source_lies_and_nothing_is_touched",)),
    ),
    "No file is replaced unasked": (
        ("cli/test_targets.py", ("test_nothing_else_is_replaced_by_any_command_whatever_is_passed",)),
    ),
    "A refused command changes nothing": (
        (
            "record/test_recording.py",
            (
                "test_a_resumption_that_is_refused_changes_nothing_and_the_right_one_goes_on",
                "test_what_a_killed_run_has_written_cannot_be_edited_before_it_goes_on",
            ),
        ),
    ),
    "What was promised stays promised": (
        (
            "record/test_recording.py",
            (
                "test_a_resumption_that_is_refused_changes_nothing_and_the_right_one_goes_on",
                "test_a_model_swapped_under_a_run_without_a_record_is_refused",
            ),
        ),
        ("record/test_lineage.py", ("test_anything_that_was_changed_since_leaves_only_what_the_model_says",)),
    ),
    "A run outlives its screen and its job": (
        ("cli/test_streams.py", ("test_a_reader_of_stderr_that_leaves_ends_nothing",)),
        ("cli/test_interrupts.py", ("test_three_signals_at_any_moment_end_a_command_in_words",)),
        (
            "test_compliance.py",
            ("test_a_request_that_is_delivered_again_is_released_again_and_a_changed_file_is_quarantined",),
        ),
    ),
    "A crash leaves no memory behind": (
        ("cli/test_streams.py", ("test_no_core_is_dumped_unless_the_user_allows_it",)),
    ),
    "Packed files are bounded": (
        ("test_security.py", ("test_a_small_packed_file_that_unpacks_to_gigabytes_is_refused_before_it_fills_memory",)),
    ),
    "Chat templates are bounded": (
        ("data/test_templates.py", ("test_a_template_without_end_is_stopped_and_refused",)),
    ),
    "Configs are bounded": (
        ("model/test_load.py", ("test_a_config_that_asks_for_millions_of_layers_is_refused_before_they_are_laid_out",)),
    ),
    "What is shown is harmless": (
        ("test_security.py", ("test_hostile_names_steer_no_screen_and_lead_nowhere",)),
        ("report/test_page.py", ("test_everything_that_is_shown_is_escaped",)),
    ),
}
"""Each promise with the tests that would fail if it were broken."""


def test_every_promise_has_tests_and_every_test_is_there() -> None:
    promises = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", PAGE, re.MULTILINE)
    assert promises[0] == "promise"
    assert promises[1:] == list(TESTS)
    for places in TESTS.values():
        for file, names in places:
            tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
            there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert set(names) <= there, set(names) - there


@pytest.mark.parametrize("surface", test_fuzz.COUNTS)
def test_the_page_has_a_class_for_each_surface_with_its_counts(surface: str) -> None:
    table = re.findall(r"^\| (?:damaged|odd)[^|]* \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert len(table) == len(test_fuzz.COUNTS)
    usual = test_fuzz.COUNTS[surface]
    assert (str(usual), str(usual * test_fuzz.LONGER)) in table


def test_the_page_has_the_counts_of_signals_kills_and_full_disks() -> None:
    rows = dict(
        re.findall(r"^\| (moments at which a [a-z]+ (?:gets|is)|writes)[^|]* \| (\d+ \| \d+) \|$", PAGE, re.MULTILINE)
    )
    moments = [str(case.values[0]) for case in test_interrupts.MOMENTS]
    assert rows["moments at which a command gets"] == " | ".join(moments)
    kills = re.findall(r"kills=(\d+)", (ROOT / "tests" / "test_kill.py").read_text(encoding="utf-8"))
    assert rows["moments at which a run is"] == " | ".join(kills)
    faults = (ROOT / "tests" / "test_faults.py").read_text(encoding="utf-8")
    assert rows["writes"] == " | ".join(
        re.findall(r'"every", \[pytest.param\((\d+), .* pytest.param\((\d+),', faults)[0]
    )
