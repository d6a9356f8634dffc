"""`python -m dualoptim_cli.report.live`: the live panel with a made-up run."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress

from dualoptim_cli.report.live.made_up import made_up_run
from dualoptim_cli.report.live.watch import PlainLines, watch
from dualoptim_cli.report.screen import Screen


def main(arguments: list[str] | None = None) -> None:
    """Show the panel with a made-up run."""
    parser = argparse.ArgumentParser(prog="python -m dualoptim_cli.report.live", description=main.__doc__)
    parser.add_argument("--speed", type=float, default=4.0, help="times as fast as a real run (default: 4)")
    parser.add_argument("--steps", type=int, default=180)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--plain", action="store_true", help="plain lines, as without a terminal")
    chosen = parser.parse_args(arguments)
    console = Screen(stderr=True)
    watcher = watch(console, title="dualopt", subtitle="a made-up run")
    if chosen.plain:
        watcher = PlainLines(sys.stderr)
    with suppress(KeyboardInterrupt), watcher as on_event:
        for seconds, event in made_up_run(chosen.steps, chosen.layers):
            time.sleep(seconds / chosen.speed)
            on_event(event)


if __name__ == "__main__":
    main()
