"""Fused head and loss against plain ones: value and gradients, in float32 and under autocast."""

from __future__ import annotations

import pytest
import torch
from reference_loss import FLOAT32_ROUNDING
from torch import Tensor

from raylm import numerics
from raylm.data.corpus import IGNORE_INDEX
from raylm.training.loss import linear_cross_entropy

SIZES = [(7, 11), (600, 4096), (300, 50257)]
TOLERANCES = {"float32": 2e-6, "bfloat16": 2e-2, "float16": 2.5e-3}
"""Maximum error, relative to the largest value: 32 units of float32's 2^-24, and 10 of bfloat16's 2^-9 and of float16's
2^-12 (logits have a standard deviation of 4, so that their rounding changes probabilities by several of them)."""


def make_inputs(rows: int, vocab_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states, weight and targets, a fifth of which is ignored."""
    torch.manual_seed(0)
    targets_N = torch.randint(0, vocab_size, (rows,))
    targets_N[::5] = IGNORE_INDEX
    return torch.randn(rows, 16, requires_grad=True), torch.randn(vocab_size, 16, requires_grad=True), targets_N


def plain_loss(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Return the loss in float64: in float32, torch's error exceeds the tolerance at the largest size."""
    logits_NV = hidden_ND.double() @ weight_VD.double().T
    return torch.nn.functional.cross_entropy(logits_NV, targets_N, ignore_index=IGNORE_INDEX, reduction="sum")


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize(("rows", "vocab_size"), SIZES)
def test_fused_head_and_loss_equal_plain_ones(
    rows: int, vocab_size: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(numerics.LOGITS_BLOCK_ROWS, "cpu", 256)  # several blocks in both precisions
    hidden_ND, weight_VD, targets_N = make_inputs(rows, vocab_size)

    def with_gradients(loss: Tensor) -> list[Tensor]:
        return [loss, *torch.autograd.grad(3 * loss, [hidden_ND, weight_VD])]

    expected = with_gradients(plain_loss(hidden_ND, weight_VD, targets_N))
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    with torch.autocast("cpu", dtype, enabled=precision != "float32"):
        results = with_gradients(linear_cross_entropy(hidden_ND, weight_VD, targets_N))
        with torch.no_grad():
            loss_without_grad = linear_cross_entropy(hidden_ND, weight_VD, targets_N)
    for result, reference in zip(results, expected, strict=True):
        assert result.dtype == torch.float32
        assert (result - reference).abs().max() <= TOLERANCES[precision] * reference.abs().max()
    assert loss_without_grad.item() == pytest.approx(results[0].item(), rel=FLOAT32_ROUNDING)


def test_target_with_a_probability_of_zero_in_float32_has_a_finite_loss() -> None:
    loss = linear_cross_entropy(torch.tensor([[1.0]]), torch.tensor([[200.0], [0.0]]), torch.tensor([1]))
    assert loss.item() == 200.0


def test_second_backward_pass_is_refused() -> None:
    hidden_ND, weight_VD, targets_N = make_inputs(7, 11)
    loss = linear_cross_entropy(hidden_ND, weight_VD, targets_N)
    torch.autograd.grad(loss, hidden_ND, retain_graph=True)
    with pytest.raises(TypeError):
        torch.autograd.grad(loss, hidden_ND)


@pytest.mark.parametrize("mean", [-112, -35, 0])
def test_loss_in_bfloat16_has_no_bias_where_all_logits_have_a_common_part(mean: int) -> None:
    """GPT-2's logits lie near -112, where the steps of bfloat16 are 0.5: rounded, the loss is 0.011 too high."""
    torch.manual_seed(0)
    width, rows, vocab_size = 64, 4000, 5000
    common = torch.ones(width)
    weight_VD = torch.randn(vocab_size, width) * 0.4 + common
    hidden_ND = torch.randn(rows, width) + mean / width * common
    probabilities_NV = (hidden_ND @ weight_VD.T).softmax(dim=-1)
    targets_N = torch.multinomial(probabilities_NV, 1).flatten()  # as of a model whose loss is its entropy
    expected = plain_loss(hidden_ND, weight_VD, targets_N) / rows
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        loss = linear_cross_entropy(hidden_ND, weight_VD, targets_N) / rows
    assert loss.item() == pytest.approx(expected.item(), abs=0.002)
