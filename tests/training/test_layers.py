"""Layers put in place of transformers': the same functions, dropout that drops what it should, files unchanged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from raylm.numerics import QUERY_BLOCK_ROWS
from raylm.training import layers
from raylm.training.loss import summed_loss
from raylm.training.optim import Adafactor


def models(dropout: float) -> tuple[GPT2LMHeadModel, GPT2LMHeadModel]:
    """One as transformers has it, and the same with layers from here."""
    torch.manual_seed(0)
    rates = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), dropout)
    config = GPT2Config(vocab_size=300, n_positions=256, n_embd=32, n_layer=2, n_head=2, **rates)
    theirs, ours = GPT2LMHeadModel(config), GPT2LMHeadModel(config)
    ours.load_state_dict(theirs.state_dict())
    return theirs, layers.patch_layers(ours)


@pytest.mark.parametrize("length", [1, 127, 200])
def test_loss_and_gradients_are_transformers_own(length: int) -> None:
    inputs_BT = torch.randint(0, 300, (3, length + 1))
    both = models(dropout=0.0)
    theirs, ours = (model(inputs_BT, labels=inputs_BT).loss for model in both)
    assert torch.allclose(theirs, ours, rtol=1e-6)
    for loss in (theirs, ours):
        loss.backward()
    for expected, mine in zip(*(model.parameters() for model in both), strict=True):
        assert (expected.grad - mine.grad).abs().max() <= 1e-5 * expected.grad.abs().max()


def test_what_is_saved_is_transformers_own(tmp_path: Path) -> None:
    for model, name in zip(models(dropout=0.1), ("theirs", "ours"), strict=True):
        model.save_pretrained(tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["activation_function"] == "gelu_new"


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    ones = torch.ones(1000, 999, requires_grad=True)
    dropped = layers.Dropout(p)(ones)
    assert (dropped == 0).float().mean().item() == pytest.approx(p, abs=0.002)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(torch.autograd.grad(dropped.sum(), ones)[0], dropped)
    assert torch.equal(layers.Dropout(p).eval()(ones), ones)


def test_dropout_follows_from_the_seed_whatever_the_threads() -> None:
    dropped = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(5)
        dropped.append(layers.Dropout(0.3)(torch.ones(500, 333)))
    torch.set_num_threads(before)
    assert torch.equal(*dropped)


@pytest.mark.parametrize("length", [1, 100, 300])
def test_attention_with_dropout_is_the_plain_one_with_the_same_mask(length: int) -> None:
    torch.manual_seed(0)
    shape = (2, 3, length, 8)
    query, key, value = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3))
    torch.manual_seed(1)
    mixed, _ = layers.causal_attention(torch.nn.Module(), query, key, value, None, scaling=0.3, dropout=0.2)

    torch.manual_seed(1)  # the same masks, drawn block by block
    kept = torch.zeros(2, 3, length, length)
    for start in range(0, length, QUERY_BLOCK_ROWS):
        end = min(start + QUERY_BLOCK_ROWS, length)
        kept[:, :, start:end, :end] = layers._keep_mask((6, end - start, end), 0.2).view(2, 3, end - start, end)
    unseen = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = (0.3 * query @ key.transpose(-1, -2)).masked_fill(unseen, -torch.inf).softmax(dim=-1)
    expected = (weights * kept * layers._dropout_scale(0.2) @ value).transpose(1, 2)

    assert torch.allclose(mixed, expected)
    direction = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad(result, [query, key, value], direction) for result in (mixed, expected))
    assert all(torch.allclose(mine, plain) for mine, plain in zip(ours, theirs, strict=True))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_for_all_shapes_at_once_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, here by inductor's code for processors."""
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    _, plain = models(dropout=0.0)
    _, compiled = models(dropout=0.0)
    layers.compile_blocks(compiled)
    both = [
        (plain, Adafactor(plain.parameters(), lr=1e-3)),
        (compiled, Adafactor(compiled.parameters(), lr=1e-3, compiled=True)),
    ]
    for step in range(3):
        inputs_BT = torch.randint(0, 300, (3, 64), generator=torch.Generator().manual_seed(step))
        losses = []
        for model, optimizer in both:
            loss = summed_loss(model, inputs_BT, inputs_BT.roll(-1, 1)) / inputs_BT.numel()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
