"""The head and loss in blocks against the plain ones: value and gradients, in float32 and under autocast."""

from __future__ import annotations

import pytest
import torch

from raylm.data.corpus import IGNORE_INDEX
from raylm.training.loss import linear_cross_entropy

SIZES = [(7, 11), (600, 4096), (300, 50257)]


def problem(rows: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, weight and targets, of which a fifth does not count."""
    torch.manual_seed(0)
    targets_N = torch.randint(0, vocabulary, (rows,))
    targets_N[::5] = IGNORE_INDEX
    return torch.randn(rows, 16, requires_grad=True), torch.randn(vocabulary, 16, requires_grad=True), targets_N


def plain(hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """In float64: in float32, torch's own is off by more than the tolerance at the largest size."""
    logits_NV = hidden_ND.double() @ weight_VD.double().T
    return torch.nn.functional.cross_entropy(logits_NV, targets_N, ignore_index=IGNORE_INDEX, reduction="sum")


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 2e-6), ("bfloat16", 2e-2)])
@pytest.mark.parametrize(("rows", "vocabulary"), SIZES)
def test_head_and_loss_in_blocks_equal_the_plain_ones(
    rows: int, vocabulary: int, precision: str, tolerance: float
) -> None:
    hidden_ND, weight_VD, targets_N = problem(rows, vocabulary)

    def results(loss: torch.Tensor) -> list[torch.Tensor]:
        return [loss, *torch.autograd.grad(3 * loss, [hidden_ND, weight_VD])]

    expected = results(plain(hidden_ND, weight_VD, targets_N))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        ours = results(linear_cross_entropy(hidden_ND, weight_VD, targets_N))
        with torch.no_grad():
            evaluated = linear_cross_entropy(hidden_ND, weight_VD, targets_N)
    for mine, theirs in zip(ours, expected, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).abs().max() <= tolerance * theirs.abs().max()
    assert evaluated.item() == pytest.approx(ours[0].item(), rel=1e-6)


def test_a_target_that_is_next_to_impossible_has_a_finite_loss() -> None:
    """Its probability is zero in float32."""
    loss = linear_cross_entropy(torch.tensor([[1.0]]), torch.tensor([[200.0], [0.0]]), torch.tensor([1]))
    assert loss.item() == 200.0


def test_gradients_are_given_once() -> None:
    hidden_ND, weight_VD, targets_N = problem(7, 11)
    loss = linear_cross_entropy(hidden_ND, weight_VD, targets_N)
    torch.autograd.grad(loss, hidden_ND, retain_graph=True)
    with pytest.raises(TypeError):
        torch.autograd.grad(loss, hidden_ND)
