"""`dualopt purge`: remove from a run what derives from the deleted rows."""

from __future__ import annotations

from dualoptim_cli.cli.console import emit
from dualoptim_cli.cli.options import Debug, Json
from dualoptim_cli.cli.verify import Key, Run, find_key, say


def purge(
    run: Run,
    key: Key = None,
    json: Json = False,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Remove checkpoints, optimizer state and caches from a run, and write that in its record."""
    from dataclasses import asdict

    from dualoptim_cli import text
    from dualoptim_cli.record.purge import purge as remove
    from dualoptim_cli.report.page.run import draw

    done = remove(run, find_key(run, key), lambda record: draw(run, record))
    if json:
        emit({**asdict(done), "run": str(done.run)})
        return
    if not done.files:
        say("There is nothing to purge: no checkpoint, optimizer state or cache is left in this run.")
        return
    for name in done.files:
        emit(text.safe(name))
    say(f"Removed {len(done.files)} file{'s' if len(done.files) != 1 else ''} ({text.size(done.bytes)}).")
    if not done.finished:
        say("This run never finished, and without its checkpoints it cannot go on.")
    elif not done.sealed:
        say("The key of the run is not here, so its record is no longer sealed; its digest is renewed.")
    say(f"SHA-256 of the record: {done.record_sha256}")
