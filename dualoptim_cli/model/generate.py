"""Prompts to continuations: batched decoding over a key–value cache."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

Advance = Callable[[int], None]


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    limit: int,
    stop: Collection[int],
    batch_size: int = 32,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    advance: Advance | None = None,
) -> list[list[int]]:
    """Continue each prompt by up to `limit` tokens, ending before the first token of `stop`.

    Greedy at temperature 0, else drawn with `generator`, which lives on the CPU. Batches hold prompts of like
    length, padded on the left; the answers come back in the order of the prompts and greedy ones do not depend on
    `batch_size`. The model decodes in the mode it is in. `advance` is called with the rows that each batch finished.
    """
    continuations: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    decoder = _Decoder(model, stop, temperature, generator)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        for row, ids in zip(rows, decoder.run([prompts[row] for row in rows], limit), strict=True):
            continuations[row] = ids
        if advance is not None:
            advance(len(rows))
    return continuations


class _Decoder:
    """Decodes one batch at a time; knows which arguments the model's forward takes."""

    def __init__(
        self, model: Any, stop: Collection[int], temperature: float, generator: torch.Generator | None
    ) -> None:
        self.model = model
        self.stop = frozenset(stop)
        self.temperature = temperature
        self.generator = generator
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        accepted = inspect.signature(plain.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self.device = plain.get_input_embeddings().weight.device

    @torch.inference_mode()
    def run(self, prompts: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
        continuations: list[list[int]] = [[] for _ in prompts]
        live = list(range(len(prompts)))  # the rows that the cache still has, finished ones included
        open_rows = set(live)
        ids, mask = _pad_left(prompts, self.device)
        cache: Any = None
        for step in range(limit):
            logits, cache = self._forward(ids, mask, cache)
            chosen = self._choose(logits)
            for row, token in zip(live, chosen.tolist(), strict=True):
                if row not in open_rows:
                    continue
                if token in self.stop:
                    open_rows.discard(row)
                else:
                    continuations[row].append(token)
            if not open_rows or step + 1 == limit:
                break
            ids, mask = chosen[:, None], torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
            if 2 * len(open_rows) <= len(live) and _can_drop_rows(cache):
                keep = torch.tensor([at for at, row in enumerate(live) if row in open_rows], device=self.device)
                live = [row for row in live if row in open_rows]
                ids, mask = ids[keep], mask[keep]
                cache.batch_select_indices(keep)
        return continuations

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        positions = {}
        if self.takes_positions:  # padding takes no position: the first real token stands at 0
            positions["position_ids"] = (mask.cumsum(1) - 1).clamp_(min=0)[:, -ids.shape[1] :]
        out = self.model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **positions, **self.last_only
        )
        return out.logits[:, -1], out.past_key_values

    def _choose(self, logits: torch.Tensor) -> torch.Tensor:
        if self.temperature == 0:
            return logits.argmax(-1)
        chances = (logits.float() / self.temperature).softmax(-1).cpu()
        return torch.multinomial(chances, 1, generator=self.generator)[:, 0].to(self.device)


def _pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def _can_drop_rows(cache: Any) -> bool:
    layers = getattr(cache, "layers", ())
    return bool(layers) and all(hasattr(layer, "batch_select_indices") for layer in layers)
