"""Text samples of best checkpoints: continuations of a prompt, reproducible by seed. Does not depend on Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from raylm.config.catalog import NANO_MODEL
from raylm.config.trial import TrialConfig
from raylm.data import tokenizer
from raylm.errors import UserError
from raylm.results.folder import open_best_checkpoint
from raylm.results.rows import Row, SweepRows
from raylm.training import models
from raylm.training.device import choose_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sample:
    """Text that the best checkpoint of a trial generated."""

    row: Row
    full_text: str
    """Prompt and continuation."""


def generate_samples(
    results: SweepRows,
    rows: Sequence[Row],
    prompt: str,
    *,
    max_new_tokens: int = 60,
    temperature: float = 1.0,
    seed: int = 0,
) -> Iterator[Sample]:
    """Generate a continuation of a prompt with the best checkpoint of each row, one after another.

    Args:
        results: the results folder.
        rows: rows of `results` that have a best checkpoint.
        prompt: start of the text; empty: the end-of-text token.
        max_new_tokens: maximum length of a continuation; it is shorter if the model reaches its context length or ends
            the text.
        temperature: divisor of the logits; 0: always the most likely token.
        seed: seed of each sample, which does not depend on the other rows.

    Yields:
        Each sample when it is complete.

    Raises:
        UserError: if a checkpoint is damaged, or the prompt fills the context of a model.
    """
    device = choose_device()
    for row in rows:
        with open_best_checkpoint(results, row) as folder:
            model = models.load_pretrained(folder, row.config.run_name)
            hf_tokenizer = tokenizer.load(folder, row.config.run_name)
        if model.config.model_type == "gpt2":
            model.set_attn_implementation("sdpa")  # raylm's attention does not support a key-value cache
        model.to(device).eval()
        max_length = _max_length(row.config, models.max_context_length(model))
        ids = _encode_prompt(prompt, hf_tokenizer, row.config.run_name, max_length)
        torch.manual_seed(seed)
        sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
        input_ids = torch.tensor([ids], device=device)
        output_ids = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=max_new_tokens if max_length is None else min(max_new_tokens, max_length - len(ids)),
            do_sample=temperature > 0,
            pad_token_id=hf_tokenizer.eos_token_id,
            **sampling,
        )
        yield Sample(row, prompt + hf_tokenizer.decode(output_ids[0, len(ids) :], skip_special_tokens=True))


def _encode_prompt(
    prompt: str, hf_tokenizer: PreTrainedTokenizerBase, run_name: str, max_length: int | None
) -> list[int]:
    """Return the token ids of a prompt, behind the start token if the tokenizer has one of its own.

    An empty prompt is the token that windows start with.

    Raises:
        UserError: if it leaves no room for another token.
    """
    own_start = tokenizer.own_start_token_id(hf_tokenizer)
    ids: list[int] = [] if own_start is None else [own_start]
    ids += hf_tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = ids or [hf_tokenizer.eos_token_id]
    if max_length is not None and len(ids) >= max_length:
        limit = f"{run_name} takes at most {max_length:,} tokens, one of them to generate"
        raise UserError(f"the prompt has {len(ids):,} tokens; {limit}")
    return ids


def _max_length(config: TrialConfig, max_positions: int | None) -> int | None:
    """Return the length up to which a model has trained positions: its training length if it started at random."""
    if config.pretrained and config.model != NANO_MODEL:
        return max_positions
    return config.context_length
