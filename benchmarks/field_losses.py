"""Our kl, undial and rmu beside the form that open-unlearning computes, on the same rows.

`python benchmarks/field_losses.py` prints ratios of the field's value to ours, over batches of 16 forget rows of a lab
model whose weights were moved a little.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dualoptim_cli.data import Encoder, load_records
from dualoptim_cli.data.batches import Examples
from dualoptim_cli.objectives import forget, retain

SHARED = Path(__file__).parents[2] / "shared"
ROWS, BATCH, LAYER, COEFFICIENT = 96, 16, 1, 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(SHARED / "models" / "tofu-2m5-target"))
    parser.add_argument("--rows", default=str(SHARED / "data" / "tofu" / "forget05.jsonl"))
    options = parser.parse_args()
    examples = Examples(load_records(options.rows), Encoder(AutoTokenizer.from_pretrained(options.model)))
    before = AutoModelForCausalLM.from_pretrained(options.model).eval()
    now = copy.deepcopy(before)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in now.parameters():
            weight += 0.02 * torch.randn_like(weight)
    ratios: dict[str, list[float]] = {"kl": [], "undial": [], "rmu": []}
    with torch.no_grad():
        for start in range(0, ROWS, BATCH):
            batch = examples.batch(range(start, start + BATCH))
            after, old = (
                model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
                for model in (now, before)
            )
            z, z_before = after.logits[:, :-1].flatten(0, 1), old.logits[:, :-1].flatten(0, 1)
            counted = (batch.labels[:, 1:] >= 0).flatten()
            target = batch.input_ids[:, 1:].flatten()
            kl, undial = retain.kl(z, z_before), forget.undial(z, target, z_before, beta=10.0)
            ratios["kl"].append(float(kl.mean() / kl[counted].mean()))
            ratios["undial"].append(float(undial.mean() / undial[counted].mean()))
            h = after.hidden_states[LAYER + 1]
            u = torch.rand(h.shape[-1])
            mask = batch.labels >= 0
            sums = (forget.rmu(h, u / u.norm(), coefficient=COEFFICIENT) * mask).sum(dim=1)
            ours = sums.sum() / mask.sum()
            field = (sums / mask.sum(dim=1, keepdim=True)).mean()  # (rows,) by (rows, 1): every row by every length
            ratios["rmu"].append(float(field / ours))
    for name, values in ratios.items():
        print(f"{name:7} {min(values):.2f} – {max(values):.2f} times ours")


if __name__ == "__main__":
    main()
