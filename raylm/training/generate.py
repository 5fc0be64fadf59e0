"""Samples of best epochs: what each model writes after the same prompt, the same words for the same seed. No Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from raylm.config.catalog import NANO_MODEL
from raylm.config.trial import TrialConfig
from raylm.data import tokenizer
from raylm.errors import UserError
from raylm.results.folder import open_best_checkpoint
from raylm.results.rows import Results, Row
from raylm.training import models


@dataclass(frozen=True)
class Sample:
    """What a model wrote."""

    row: Row
    full_text: str
    """The prompt and what comes after it."""


def generate_samples(
    results: Results,
    rows: Sequence[Row],
    prompt: str,
    *,
    max_new_tokens: int = 60,
    temperature: float = 1.0,
    seed: int = 0,
) -> Iterator[Sample]:
    """Has the best epoch of each row go on from a prompt, one after another.

    Args:
        found: the results folder.
        rows: of it; each has a best epoch.
        prompt: what comes first; nothing: the end-of-text token.
        max_new_tokens: fewer where a model takes no more tokens, or ends its text.
        temperature: logits are divided by it; 0: always the likeliest token.
        seed: of each model's sampling, so that a sample does not depend on what else is sampled.

    Yields:
        Each sample as it is there.

    Raises:
        UserError: if a checkpoint is damaged, or the prompt leaves no room in a model's context.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for row in rows:
        with open_best_checkpoint(results, row) as folder:
            model = models.load_pretrained(folder, row.config.run_name)
            words = tokenizer.load(folder, row.config.run_name)
        model.set_attn_implementation("sdpa")  # ours takes all positions at once, not one after those that are cached
        model.to(device).eval()
        ids = words(prompt, add_special_tokens=False)["input_ids"] or [words.eos_token_id]
        longest = _max_positions(row.config, models.max_context_length(model))
        if longest is not None and len(ids) >= longest:
            takes = f"{row.config.run_name} takes {longest:,}, with at least one to write"
            raise UserError(f"the prompt has {len(ids):,} tokens; {takes}")
        room = max_new_tokens if longest is None else min(max_new_tokens, longest - len(ids))
        torch.manual_seed(seed)
        chosen = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
        inputs = torch.tensor([ids], device=device)
        written = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=room,
            do_sample=temperature > 0,
            pad_token_id=words.eos_token_id,
            **chosen,
        )
        yield Sample(row, prompt + words.decode(written[0, len(ids) :], skip_special_tokens=True))


def _max_positions(config: TrialConfig, max_positions: int | None) -> int | None:
    """Positions that a model knows: those that it was trained at, where its weights were random, else all."""
    if config.pretrained and config.model != NANO_MODEL:
        return max_positions
    return config.context_length
