"""Patched layers: the same functions as transformers', correct dropout, unchanged files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from reference_loss import FLOAT32_ROUNDING, TRAINING_ROUNDING
from transformers import GPT2Config, GPT2LMHeadModel

from raylm.numerics import QUERY_BLOCK_ROWS
from raylm.training import layers
from raylm.training.loss import summed_loss
from raylm.training.optim.adafactor import Adafactor

TINY = {"vocab_size": 300, "n_positions": 256, "n_layer": 1, "n_head": 2}


def make_models(dropout: float) -> tuple[GPT2LMHeadModel, GPT2LMHeadModel]:
    """Return a transformers model and a copy with patched layers."""
    torch.manual_seed(0)
    rates = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), dropout)
    config = GPT2Config(vocab_size=300, n_positions=256, n_embd=32, n_layer=2, n_head=2, **rates)
    original, patched = GPT2LMHeadModel(config), GPT2LMHeadModel(config)
    patched.load_state_dict(original.state_dict())
    return original, layers.patch_layers(patched)


@pytest.mark.parametrize("length", [1, 127, 200])
def test_loss_and_gradients_equal_transformers(length: int) -> None:
    inputs_BT = torch.randint(0, 300, (3, length + 1))
    original, patched = make_models(dropout=0.0)
    expected_loss, loss = (model(inputs_BT, labels=inputs_BT).loss for model in (original, patched))
    assert torch.allclose(loss, expected_loss, rtol=FLOAT32_ROUNDING)
    expected_loss.backward()
    loss.backward()
    # the backward pass adds up to 600 positions through two layers: ten times the tolerance of the loss
    for expected, parameter in zip(original.parameters(), patched.parameters(), strict=True):
        assert (parameter.grad - expected.grad).abs().max() <= 10 * FLOAT32_ROUNDING * expected.grad.abs().max()


def test_saved_files_equal_transformers(tmp_path: Path) -> None:
    for model, name in zip(make_models(dropout=0.1), ("original", "patched"), strict=True):
        model.save_pretrained(tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "patched" / file).read_bytes() == (tmp_path / "original" / file).read_bytes()
    assert json.loads((tmp_path / "patched" / "config.json").read_text())["activation_function"] == "gelu_new"


def test_gelu_in_bfloat16_is_as_exact_as_that_of_torch() -> None:
    torch.manual_seed(0)
    hidden = (3 * torch.randn(5, 300, 301)).bfloat16()

    def evaluate(gelu: torch.nn.Module, dtype: torch.dtype) -> torch.Tensor:
        inputs = hidden.to(dtype).requires_grad_()
        outputs = gelu(inputs)
        return torch.stack([outputs, *torch.autograd.grad(outputs.sum(), inputs)])

    expected = evaluate(torch.nn.GELU("tanh"), torch.float64)
    errors, torch_errors = (
        (evaluate(gelu, torch.bfloat16) - expected).abs().amax(dim=(1, 2, 3))
        for gelu in (layers.Gelu("tanh"), torch.nn.GELU("tanh"))
    )
    assert (errors <= torch_errors + 1e-6).all()


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_dropout_has_its_probability_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    ones = torch.ones(1000, 999, requires_grad=True)
    dropped = layers.Dropout(p)(ones)
    assert (dropped == 0).float().mean().item() == pytest.approx(p, abs=0.002)  # 4 standard deviations
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.02)  # 6 of them at p = 0.9
    assert torch.equal(torch.autograd.grad(dropped.sum(), ones)[0], dropped)
    assert torch.equal(layers.Dropout(p).eval()(ones), ones)


def test_dropout_does_not_depend_on_the_number_of_threads() -> None:
    results = []
    num_threads = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(5)
        results.append(layers.Dropout(0.3)(torch.ones(500, 333)))
    torch.set_num_threads(num_threads)
    assert torch.equal(*results)


@pytest.mark.parametrize("dropout", [0.2, 0.0])
@pytest.mark.parametrize("length", [1, 100, 300])
def test_attention_on_a_cpu_equals_plain_attention_with_the_same_mask(length: int, dropout: float) -> None:
    torch.manual_seed(0)
    shape = (2, 3, length, 8)
    query, key, value = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3))
    torch.manual_seed(1)
    heads = [tensor.flatten(0, 1) for tensor in (query, key, value)]
    mixed = layers._CausalAttention.apply(*heads, 0.3, dropout)  # type: ignore[no-untyped-call]
    mixed = mixed.view(shape).transpose(1, 2)

    torch.manual_seed(1)  # the same masks, drawn block by block
    kept = torch.zeros(2, 3, length, length)
    for start in range(0, length, QUERY_BLOCK_ROWS):
        end = min(start + QUERY_BLOCK_ROWS, length)
        kept[:, :, start:end, :end] = layers._keep_mask((6, end - start, end), dropout).view(2, 3, end - start, end)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = (0.3 * query @ key.transpose(-1, -2)).masked_fill(future, -torch.inf).softmax(dim=-1)
    expected = (weights * kept * layers._dropout_scale(dropout) @ value).transpose(1, 2)

    assert torch.allclose(mixed, expected)
    direction = torch.randn_like(expected)
    grads, expected_grads = (
        torch.autograd.grad(result, [query, key, value], direction) for result in (mixed, expected)
    )
    assert all(torch.allclose(grad, reference) for grad, reference in zip(grads, expected_grads, strict=True))


@pytest.mark.nightly
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_training_equals_eager_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiles once for all shapes, as on a GPU, by inductor's CPU backend."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # code for other instruction sets is not reused
    _, eager = make_models(dropout=0.0)
    _, compiled = make_models(dropout=0.0)
    layers.compile_blocks(compiled)
    pairs = [
        (eager, Adafactor(eager.parameters(), lr=1e-3)),
        (compiled, Adafactor(compiled.parameters(), lr=1e-3)),
    ]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(3):
            inputs_BT = torch.randint(0, 300, (3, 64), generator=torch.Generator().manual_seed(step))
            losses = []
            for model, optimizer in pairs:
                loss = summed_loss(model, inputs_BT, inputs_BT.roll(-1, 1)) / inputs_BT.numel()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
            assert losses[0] == pytest.approx(losses[1], rel=TRAINING_ROUNDING)


def test_a_process_compiles_the_blocks_of_all_its_trials(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Dynamo keeps at most eight graphs of a function: the models after the fourth one would run uncompiled."""
    import torch._dynamo.config as dynamo

    def train_one_step(width: int) -> None:
        model = layers.patch_layers(GPT2LMHeadModel(GPT2Config(**TINY, n_embd=width)))
        layers.compile_blocks(model, backend="eager")
        tokens_BT = torch.zeros(2, 6, dtype=torch.long)
        summed_loss(model.train(), tokens_BT, tokens_BT).backward()  # type: ignore[no-untyped-call]

    torch._dynamo.reset()
    try:
        with dynamo.patch(recompile_limit=1, accumulated_recompile_limit=1):
            train_one_step(width=8)
            train_one_step(width=16)
            assert "hit config" not in caplog.text
        monkeypatch.setattr(layers, "GRAPHS_PER_MODEL", 0)
        with dynamo.patch(recompile_limit=1, accumulated_recompile_limit=100):
            train_one_step(width=24)
        assert "hit config.recompile_limit (1)" in caplog.text, "a trial's log would not name it"
    finally:
        torch._dynamo.reset()
