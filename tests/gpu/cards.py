"""Run trials of all sizes on cards of several sizes, with the micro-batches of the plan, and print their peaks.

    FAKE_GPU_GIB=80 python tests/gpu/fake_gpu.py python tests/gpu/cards.py [--model gpt2] [--card 24] [--batch 64]

A card is a limit of torch's allocator on a GPU that has at least as much. A trial of two steps and an evaluation must
not run out of memory. A cell that the plan refuses is not run. Weights and tokens are random.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from pathlib import Path
from unittest import mock

sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
from fake_cuda.trial import random_corpus, write_config

from gpu.step_counts import GIB, load_on_gpu
from gpu.trials import train
from raylm.config.catalog import MODELS
from raylm.config.trial import TrialConfig
from raylm.planning.memory import RUNTIME_BASELINE_BYTES, MemoryModel
from raylm.training import device, models
from raylm.training.options import ExecutionOptions

CARDS_GIB = (11, 16, 24, 40, 48, 80)
SIZES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
CONTEXT_LENGTHS = (256, 512, 1024)


def run_cell(config: TrialConfig, card_gib: int) -> tuple[str, float, float]:
    """Run a trial on a card; return its result, and the peaks that were planned and that the allocator held, in GiB.

    The result is `refused`, the micro-batching if the trial ran with the planned one, or `reduced to` another.
    """
    memory_model = MemoryModel(MODELS[config.model].shape, config, "cuda", "bfloat16")
    chosen = memory_model.choose_micro_batching(card_gib * GIB)
    planned = memory_model.peak_bytes(chosen) / GIB
    if memory_model.describe_excess(card_gib * GIB):
        return "refused", planned, 0.0
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    context = RUNTIME_BASELINE_BYTES["cuda"]
    device.limit_gpu_memory((card_gib * GIB - context) / torch.cuda.mem_get_info()[1], 0)
    options = ExecutionOptions("cuda", "bfloat16", chosen, next_smaller=memory_model.next_smaller)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(models, "load_model", load_on_gpu(models.load_model)),
    ):
        source = write_config(config.model, Path(folder))
        observed = train(config, random_corpus(config, 2 * config.batch_size), source, options=options)
    result = f"reduced to {observed.reductions[-1]}" if observed.reductions else str(chosen)
    return result, planned, (torch.cuda.max_memory_reserved() + context) / GIB


def main() -> None:
    """Print a line for each cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="*", default=SIZES)
    parser.add_argument("--card", nargs="*", type=int, default=CARDS_GIB)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    device.set_allocator_options()
    print("| card, GiB | model | context | result | planned, GiB | held, GiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for model in args.model:
        for length in CONTEXT_LENGTHS:
            for card in args.card:
                config = TrialConfig(model=model, context_length=length, batch_size=args.batch, dropout=0.1)
                result, planned, held = run_cell(config, card)
                print(f"| {card} | {model} | {length} | {result} | {planned:.2f} | {held:.2f} |", flush=True)


if __name__ == "__main__":
    main()
