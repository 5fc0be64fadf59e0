"""Memory estimates, compared with the bytes that autograd saves, and the micro-batches chosen by them."""

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
from raylm.units import GIB

WIDTH, HEADS, LENGTH, BATCH, VOCABULARY = 64, 2, 256, 2, 64


def count_saved_bytes(
    folder: Path, num_layers: int, precision: str, dropout: float, recompute: bool, compiled: bool = False
) -> int:
    """Return the bytes that the forward pass of a GPT-2 saves for the backward pass, without its float32 weights."""
    sizes = {"vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": WIDTH, "n_layer": num_layers, "n_head": HEADS}
    GPT2Config(**sizes, bos_token_id=0, eos_token_id=0).save_pretrained(folder)
    source = models.ModelSource("gpt2", str(folder), pretrained=False)
    model = models.load_model(source, vocab_size=VOCABULARY, dropout=dropout, seed=0).train()
    if recompute:
        models.enable_activation_checkpointing(model)
    if compiled:  # the compiler's choice of what is saved, without its kernels
        for block in model.base_model.h:
            block.compile(backend="aot_eager_decomp_partition")
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.Tensor] = {}  # the tensors themselves, so that no storage is reused

    def save(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        model.base_model(input_ids=torch.zeros(BATCH, LENGTH, dtype=torch.long), use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_saved_bytes_of_a_layer_are_those_of_autograd(
    tmp_path: Path, precision: str, dropout: float, recompute: bool
) -> None:
    two, three = (count_saved_bytes(tmp_path, num_layers, precision, dropout, recompute) for num_layers in (2, 3))

    shape = ModelShape(1, WIDTH, HEADS, VOCABULARY, LENGTH)
    trial = TrialConfig(context_length=LENGTH, batch_size=BATCH, dropout=dropout)
    planned = MemoryModel(shape, trial, "cpu", precision).saved_bytes(MicroBatching(BATCH, recompute))
    copies = 2 * 12 * WIDTH**2 if precision == "bfloat16" and not recompute else 0  # of the weights of its matrices
    assert three - two == pytest.approx(planned + copies, rel=0.02)


def test_compiled_layers_save_at_most_what_is_planned(tmp_path: Path) -> None:
    two, three = (count_saved_bytes(tmp_path, layers, "bfloat16", 0.0, False, compiled=True) for layers in (2, 3))
    torch.compiler.reset()
    shape, trial = ModelShape(1, WIDTH, HEADS, VOCABULARY, LENGTH), TrialConfig(context_length=LENGTH, dropout=0.0)
    planned = MemoryModel(shape, trial, "cuda", "bfloat16").saved_bytes(MicroBatching(BATCH)) + 2 * 12 * WIDTH**2
    assert 1.0 <= planned / (three - two) <= 1.1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("gib", [1, 8, 16, 24, 80])
@pytest.mark.parametrize("name", ["gpt2-nano", "gpt2", "gpt2-xl"])
def test_micro_batch_is_the_largest_that_fits_and_recomputation_the_last_resort(
    name: str, gib: int, precision: str
) -> None:
    memory_model = MemoryModel(MODELS[name].shape, TrialConfig(model=name, batch_size=64), "cuda", precision)
    available = gib * GIB
    chosen = memory_model.choose_micro_batching(available)

    def fits(size: int, recompute: bool) -> bool:
        return memory_model.peak_bytes(MicroBatching(size, recompute)) <= available * memory.USABLE_MEMORY_FRACTION

    assert 1 <= chosen.micro_batch_size <= 64
    assert fits(*vars(chosen).values()) or chosen == MicroBatching(1, recompute=True)
    assert chosen.recompute != fits(1, recompute=False)
    if chosen.micro_batch_size < 64:  # one micro-batch less does not fit
        assert not fits(-(-64 // (-(-64 // chosen.micro_batch_size) - 1)), chosen.recompute)


def test_gpt2_xl_fits_a_gpu_of_24_gb_and_one_of_16_gb_with_recomputation() -> None:
    memory_model = MemoryModel(MODELS["gpt2-xl"].shape, TrialConfig(model="gpt2-xl"), "cuda", "bfloat16")
    a10g_bytes, a4000_bytes = 22 * GIB, 15.6 * GIB  # 24 and 16 GB with error correction
    assert memory_model.choose_micro_batching(a10g_bytes) == MicroBatching(1)
    assert memory_model.choose_micro_batching(a4000_bytes) == MicroBatching(8, recompute=True)
    assert memory_model.choose_micro_batching(79 * GIB) == MicroBatching(8)


def test_ranks_share_the_batch_and_need_buffers_for_gradients() -> None:
    shape, trial = MODELS["gpt2"].shape, TrialConfig(model="gpt2", batch_size=9)
    alone, shared = (MemoryModel(shape, trial, "cuda", "float32", ranks) for ranks in (1, 2))
    assert (alone.max_rank_windows, shared.max_rank_windows) == (9, 5)
    assert shared.peak_bytes(MicroBatching(3)) == alone.peak_bytes(MicroBatching(3)) + 4 * shape.num_parameters
    assert shared.choose_micro_batching(200 * GIB) == MicroBatching(5)


def test_checkpoint_holds_float32_weights_and_the_moments_of_adamw() -> None:
    shape = MODELS["gpt2"].shape
    assert memory.checkpoint_bytes(shape, "adafactor") == 4 * shape.num_parameters
    assert memory.checkpoint_bytes(shape, "adamw") == 12 * shape.num_parameters
