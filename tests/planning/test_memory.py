"""What a trial needs: the bytes that autograd keeps are counted, and recomputing them changes no bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config

from raylm import TrialConfig
from raylm.config.catalog import MODELS, ModelShape
from raylm.planning import memory
from raylm.planning.memory import MemoryModel
from raylm.results.progress import MicroBatching
from raylm.training import models

WIDTH, HEADS, LENGTH, BATCH, VOCABULARY = 64, 2, 256, 2, 64


def kept_bytes(folder: Path, layers: int, precision: str, dropout: float, recompute: bool) -> int:
    """What the forward pass of a GPT-2 leaves for the backward pass, its float32 weights aside."""
    sizes = {"vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": WIDTH, "n_layer": layers, "n_head": HEADS}
    GPT2Config(**sizes, bos_token_id=0, eos_token_id=0).save_pretrained(folder)
    source = models.ModelSource("gpt2", str(folder), pretrained=False)
    model = models.load_model(source, vocab_size=VOCABULARY, dropout=dropout, seed=0).train()
    if recompute:
        models.enable_activation_checkpointing(model)
    weights = {one.untyped_storage().data_ptr() for one in model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # the tensors themselves, so that no storage is used again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        model.base_model(input_ids=torch.zeros(BATCH, LENGTH, dtype=torch.long), use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_layer_keeps_what_the_plan_says(tmp_path: Path, precision: str, dropout: float, recompute: bool) -> None:
    two, three = (kept_bytes(tmp_path, layers, precision, dropout, recompute) for layers in (2, 3))

    shape = ModelShape(1, WIDTH, HEADS, VOCABULARY, LENGTH)
    trial = TrialConfig(context_length=LENGTH, batch_size=BATCH, dropout=dropout)
    planned = MemoryModel(shape, trial, "cpu", precision).saved_bytes(MicroBatching(BATCH, recompute))
    copies = 2 * 12 * WIDTH**2 if precision == "bfloat16" and not recompute else 0  # of its matrices
    assert three - two == pytest.approx(planned + copies, rel=0.02)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("gib", [1, 8, 16, 24, 80])
@pytest.mark.parametrize("name", ["gpt2-nano", "gpt2", "gpt2-xl"])
def test_the_micro_batch_is_the_largest_that_fits_and_nothing_is_recomputed_without_need(
    name: str, gib: int, precision: str
) -> None:
    work = MemoryModel(MODELS[name].shape, TrialConfig(model=name, batch_size=64), "cuda", precision)
    available = gib * 2**30
    fit = work.choose_micro_batching(available)

    def fits(size: int, recompute: bool) -> bool:
        return work.peak_bytes(MicroBatching(size, recompute)) <= available * memory.USABLE_MEMORY_FRACTION

    assert 1 <= fit.micro_batch_size <= 64
    assert fits(*vars(fit).values()) or fit == MicroBatching(1, recompute=True)
    assert fit.recompute != fits(1, recompute=False)
    if fit.micro_batch_size < 64:  # one part less would not have fitted
        assert not fits(-(-64 // (-(-64 // fit.micro_batch_size) - 1)), fit.recompute)


def test_the_largest_model_fits_a_card_of_24_gb_by_recomputation() -> None:
    work = MemoryModel(MODELS["gpt2-xl"].shape, TrialConfig(model="gpt2-xl"), "cuda", "bfloat16")
    assert work.choose_micro_batching(22 * 2**30) == MicroBatching(
        8, recompute=True
    )  # an A10G: 24 GB with error correction
    assert not work.choose_micro_batching(79 * 2**30).recompute


def test_ranks_share_the_batch_and_need_room_to_exchange_gradients() -> None:
    shape, trial = MODELS["gpt2"].shape, TrialConfig(model="gpt2", batch_size=9)
    alone, shared = (MemoryModel(shape, trial, "cuda", "float32", ranks) for ranks in (1, 2))
    assert (alone.max_rank_windows, shared.max_rank_windows) == (9, 5)
    assert shared.peak_bytes(MicroBatching(3)) == alone.peak_bytes(MicroBatching(3)) + 4 * shape.num_parameters
    assert shared.choose_micro_batching(200 * 2**30) == MicroBatching(5)
