"""The screen: stdout is data, stderr is progress. Here an error becomes words, or JSON, and an exit code."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

import typer
from typer.exceptions import Abort, TyperException

from dualoptim_cli.errors import ExitCode, UserError, out_of_memory

BUG_HINT = "This is a bug in dualopt. Please report it with the output of --debug and of `dualopt env`."
MEMORY_HINT = "Free some memory, or ask for less of it: a smaller model, fewer rows at once, --device cpu."
QUOTES_NO_ROW = (UserError, RuntimeError, TypeError, AttributeError, NameError, ImportError, MemoryError)
"""Whose words are about code, files and tensors; a subclass of these may be more talkative."""
OTHER_NAMES = {"--learning-rate": "--lr", "--output": "--out", "--output-dir": "--out", "--model-name": "--model"}
"""What other tools call our options."""
NOISE = ("bitsandbytes", "kernels", "transformers", "accelerate", "datasets", "huggingface_hub", "httpx", "torch")


JSON_VERSION = 1
"""Of what `--json` writes, as `output.schema.json` describes it: another number where a reader must change."""


def emit(value: Any) -> None:
    """Write a result to stdout, text or a mapping as JSON; what a terminal would obey is spelled out."""
    from dualoptim_cli.text import harmless, in_json

    if isinstance(value, str):
        text = harmless(value)
    else:
        text = in_json(json.dumps({"version": JSON_VERSION, **value}, indent=2, ensure_ascii=False))
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def show(*things: Any) -> None:
    """Write results for a person to stdout: tables, in color where the terminal has it, and lines, however long."""
    _print(result_screen(), things)


def tell(*things: Any) -> None:
    """Write what goes along with a result to stderr, in the same way."""
    _print(screen(), things)


def _print(where: Any, things: Sequence[Any]) -> None:
    from rich.text import Text

    from dualoptim_cli.text import safe

    for thing in things:
        line = isinstance(thing, str)
        where.print(Text(safe(thing)) if line else thing, soft_wrap=line, highlight=False)


def screen() -> Any:
    """A rich console on stderr, for progress and errors."""
    from dualoptim_cli.report.screen import Screen

    return Screen(stderr=True)


def result_screen() -> Any:
    """A rich console on stdout, for results."""
    from dualoptim_cli.report.screen import Screen

    return Screen()


def run_app(app: typer.Typer, arguments: Sequence[str]) -> NoReturn:
    """Run the app and leave with its exit code; every error ends here as words, or as JSON with --json."""
    as_json, debug = "--json" in arguments, "--debug" in arguments
    try:
        code = app(args=list(arguments), prog_name="dualopt", standalone_mode=False)
    except UserError as error:
        code = _fail(error, as_json, debug)
    except TyperException as error:
        message = _message(error)  # none where a command was called without anything, and its help was shown
        fault = UserError(_sentence(message), _help(error))
        code = _fail(fault, as_json, debug) if message else int(fault.code)
    except (KeyboardInterrupt, Abort):
        code = _fail(UserError("Interrupted.", code=ExitCode.INTERRUPTED), as_json, debug)
    except BrokenPipeError:  # the reader of stdout left: `dualopt recipes show demo | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 0
    except OSError as error:
        code = _fail(_system_error(error), as_json, debug)
    except Exception as error:  # noqa: BLE001 - the last stop: whatever is left is memory, or our bug, and is said to be
        code = _fail(_last_stop(error), as_json, debug)
    code = int(code or 0)
    try:
        sys.stdout.flush()  # a full disk shows only now, and at exit it could not be said any more
    except UserError as error:
        code = code or _fail(error, False, debug)
    sys.exit(code)


def quiet_libraries() -> None:
    """Keep other libraries' advice off the screen; what users must know, dualopt says itself.

    bitsandbytes, for one, tells CPU users to install a package that fetches code from a hub.
    """
    import logging

    for name in NOISE:
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for library in ("HF_HUB", "TRANSFORMERS", "DATASETS"):  # these set their levels themselves when they are imported
        os.environ.setdefault(f"{library}_VERBOSITY", "error")


def _fail(error: UserError, as_json: bool, debug: bool) -> int:
    if debug:
        sys.stderr.write(_trace(sys.exc_info()[1]))
    if as_json:
        report = {"message": error.message, "hint": error.hint, "exit_code": int(error.code)}
        emit({"error": report, "faults": [fault.to_json() for fault in error.parts or (error,)]})
    else:
        from rich.text import Text

        from dualoptim_cli.text import safe

        message = "\n".join(map(safe, error.message.split("\n")))
        lines = Text.assemble(("Error: ", "bold red"), message)
        if error.hint:
            lines.append(f"\n{safe(error.hint)}", "cyan")
        screen().print(lines, soft_wrap=True)
    return int(error.code)


def _trace(error: BaseException | None) -> str:
    """A traceback to send with a report: what libraries say of a value is left out, for it may quote a row."""
    if error is None:
        return ""
    before = _trace(error.__cause__ or (None if error.__suppress_context__ else error.__context__))
    known = isinstance(error, OSError) or type(error) in QUOTES_NO_ROW
    words = f": {error}" if known else " (its words are left out, for they may quote a row)"
    frames = "".join(traceback.format_tb(error.__traceback__))
    return f"{before}Traceback (most recent call last):\n{frames}{type(error).__name__}{words}\n"


def _system_error(error: OSError) -> UserError:
    import errno

    what = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    if error.errno == errno.ENOMEM:
        return UserError(f"{what}.", MEMORY_HINT, ExitCode.RESOURCES)
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return UserError(f"{what}.", "Free some space, or choose another --out.", ExitCode.RESOURCES)
    return UserError(f"{what}.", "Check the path and its permissions.")


def _last_stop(error: Exception) -> UserError:
    """What nobody foresaw: memory that ran out where that is nobody's business, or a bug, told by its place."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"in {os.path.basename(where.filename)}:{where.lineno}"  # noqa: PTH119
    if out_of_memory(error):
        return UserError(f"Memory ran out ({type(error).__name__} {place}).", MEMORY_HINT, ExitCode.RESOURCES)
    return UserError(f"{type(error).__name__} {place}.", BUG_HINT, ExitCode.BUG)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _message(error: TyperException) -> str:
    """What the parser says, with the nearest of the options that it thinks possible."""
    wrong, options = getattr(error, "option_name", ""), getattr(error, "possibilities", None)
    if wrong in OTHER_NAMES:
        return f'There is no option {wrong}. Did you mean "{OTHER_NAMES[wrong]}"?'
    if not options:
        return error.format_message()
    near = get_close_matches(wrong, options, n=1, cutoff=0) or options
    return f'There is no option {wrong}. Did you mean "{near[0]}"?'


def _help(error: TyperException) -> str:
    context = getattr(error, "ctx", None)
    return f"Try `{context.command_path} --help`." if context else ""
