"""`dualopt merge-lora`: adapters and their full-precision base become one plain model, checked before it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dualoptim_cli.cli.console import emit, quiet_libraries, show
from dualoptim_cli.cli.options import Debug, Device, Json, Quiet, TrustRemoteCode
from dualoptim_cli.errors import UserError

if TYPE_CHECKING:
    from dualoptim_cli.model.merge import Merged

DTYPES = ("auto", "float32", "bfloat16", "float16")


def _option(name: str, text: str) -> Any:
    return typer.Option(name, help=text, show_default=False)


def merge_lora(
    adapter: Annotated[
        list[str], _option("--adapter", "An adapter, or the run that left it; repeat it for a chain, oldest first.")
    ],
    out: Annotated[Path, _option("--out", "Folder of the merged model; it must not exist.")],
    base: Annotated[
        str | None, _option("--base", "The full-precision base; the one that the adapter names by default.")
    ] = None,
    dtype: Annotated[str, _option("--dtype", "auto (as the base), float32, bfloat16 or float16.")] = "auto",
    max_shard_size: Annotated[str, _option("--max-shard-size", "Largest file of weights; 5GB by default.")] = "5GB",
    tolerance: Annotated[
        float | None,
        _option(
            "--tolerance",
            "How far a logit may be off, as a share of the largest; by default 1.2e-5 in float32, "
            "0.0059 in float16, 0.047 in bfloat16.",
        ),
    ] = None,
    device: Device = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Merge adapters into their base and compare the result's logits with theirs; no GPU is needed."""
    if dtype not in DTYPES:
        raise UserError(f'--dtype: there is no "{dtype}".', f"Choose from: {', '.join(DTYPES)}.")
    if tolerance is not None and not tolerance >= 0:
        raise UserError(f"--tolerance: {tolerance} is not a share.", "Give a number from 0 on, like 0.001.")
    quiet_libraries()
    from dualoptim_cli.job.merging import merge_adapters

    merged = merge_adapters(
        adapter,
        out,
        base=base,
        dtype=dtype,
        max_shard_size=max_shard_size,
        tolerance=tolerance,
        device=device or "cpu",
        trust_remote_code=trust_remote_code,
    )
    if json:
        emit(_to_json(merged))
    elif not quiet:
        _tell(merged)


def _to_json(merged: Merged) -> dict[str, Any]:
    difference = merged.difference
    return {
        "out": str(merged.out),
        "base": merged.base,
        "adapters": [str(folder) for folder in merged.adapters],
        "left_out": [str(folder) for folder in merged.left_out],
        "dtype": merged.dtype,
        "shards": merged.shards,
        "largest_difference": difference.largest,
        "largest_logit": difference.logit,
        "moved_by_adapters": difference.moved,
        "tolerance": difference.tolerance,
        "notes": list(merged.notes),
    }


def _tell(merged: Merged) -> None:
    for folder in merged.left_out:
        show(f"{folder} is left out: a later adapter has taken it up.")
    for note in merged.notes:
        show(note)
    for folder in merged.adapters:
        show(f"Merged {folder}")
    show(f"into {merged.base} ({merged.dtype}).")
    show(f"Checked, loaded afresh: {merged.difference}.")
    if not merged.difference.tells:
        show("Mind that the adapters move these logits hardly more than is allowed: the check says little.")
    show(f"The model is in {merged.out} and loads with from_pretrained.")
