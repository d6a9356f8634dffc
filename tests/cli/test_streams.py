"""Streams that fail: a reader that leaves, a full device, a closed descriptor. Each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DUALOPT = [sys.executable, "-m", "dualoptim_cli"]
full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")


def shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)


def test_a_reader_of_stderr_that_leaves_ends_nothing() -> None:
    code = (
        "import sys; from dualoptim_cli.cli.streams import guard_streams; guard_streams()\n"
        "for step in range(9): print('step', step, file=sys.stderr, flush=True)\n"
        "print('done')"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=writer, check=False)
    os.close(writer)
    assert (done.returncode, done.stdout) == (0, b"done\n")


@full
def test_an_error_that_cannot_be_shown_keeps_its_exit_code() -> None:
    assert shell(f"{' '.join(DUALOPT)} recipes show nosuch 2>/dev/full").returncode == 2


@full
def test_a_result_that_a_full_device_does_not_take_is_exit_4_in_words() -> None:
    done = shell(f"{' '.join(DUALOPT)} recipes list >/dev/full")
    assert done.returncode == 4
    assert "cannot be written to stdout: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_was_closed_is_done_without(closed: str) -> None:
    done = shell(f"{' '.join(DUALOPT)} recipes list {closed}")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_a_reader_of_stdout_that_leaves_is_no_error() -> None:
    done = shell(f"set -o pipefail; {' '.join(DUALOPT)} recipes show demo | head -1")
    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no such limit")
@pytest.mark.parametrize(("allowed", "limit"), [("", "0"), ("1", "(4096")])
def test_no_core_is_dumped_unless_the_user_allows_it(allowed: str, limit: str) -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_CORE, (4096, 4096))\n"
        "from dualoptim_cli.cli.streams import forbid_core_dumps; forbid_core_dumps()\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE))"
    )
    environment = {**os.environ, "DUALOPT_CORE_DUMPS": allowed}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.lstrip("(").startswith(limit.lstrip("("))
