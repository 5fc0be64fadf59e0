"""Context in which raylm's CUDA path runs on fake tensors, without a GPU and without numbers.

`guard.load()` comes first. Each patch stands in for something that FakeTensorMode or a CPU build lacks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.cuda.amp.common
import torch.utils.checkpoint
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import raylm.training.optim
from raylm.training import layers, loss

FAKE_LOSS = 1.0
"""Value of every number that is read from the device."""
_fused_adamw_of_floats = torch._fused_adamw_
_attention_on_cpu = nn.functional.scaled_dot_product_attention


@contextlib.contextmanager
def fake_cuda() -> Iterator[list[str]]:
    """Make tensors on `cuda` fake ones of a GPU of compute capability 8 or more.

    Yields:
        Names of the reads that made the host wait for the device, in order; grows while the context is open.
    """
    waits: list[str] = []

    def read(name: str) -> Any:
        def item(tensor: Tensor) -> Any:
            if tensor.is_cuda:
                waits.append(name)
            return FAKE_LOSS if name == "item" else [FAKE_LOSS] * tensor.numel()

        return item

    torch.cuda._initialized = True  # seeds and device properties are requested lazily: never here
    with contextlib.ExitStack() as stack:
        for target, name, value in [
            (torch.Tensor, "pin_memory", _pin),  # not implemented for fake tensors
            (FakeTensor, "tolist", read("tolist")),  # fake tensors have no data
            (FakeTensor, "item", read("item")),
            (transformers.PreTrainedModel, "to", _move_module),  # swap_tensors of tied weights
            (torch.cuda, "empty_cache", lambda: None),
            (torch.cuda, "current_device", lambda: 0),
            (torch.cuda, "is_available", lambda: True),
            (torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True),
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),  # autocast asks the runtime
            (nn.functional, "scaled_dot_product_attention", _attention),  # the choice of a kernel asks the driver
            (loss, "has_loss_kernel", lambda device_type: device_type == "cuda"),
            (layers, "can_compile", lambda model: False),
            (layers, "has_triton", lambda: True),
            (torch, "_fused_adamw_", _fused_adamw),  # not implemented for fake tensors as learning rates
            (torch.utils.checkpoint, "get_device_states", lambda *args: ([], [])),  # of the GPUs' generators
            (torch.utils.checkpoint, "set_device_states", lambda *args, **kwargs: None),
        ]:
            stack.enter_context(mock.patch.object(target, name, value))
        for package, name, kernels in [
            (raylm.training, "loss_kernel", SimpleNamespace(cross_entropy=_cross_entropy)),
            (raylm.training.optim, "adafactor_launch", SimpleNamespace(update_stacks=_update_stacks)),
        ]:
            stack.enter_context(mock.patch.object(package, name, kernels, create=True))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield waits


def _pin(tensor: Any, *args: object) -> Any:
    """Return a tensor on the host as it is, without the value that FakeTensorMode keeps for a single number."""
    tensor.constant = None
    return tensor


def _fused_adamw(*args: Any, lr: float | Tensor, **kwargs: Any) -> Any:
    return _fused_adamw_of_floats(*args, lr=FAKE_LOSS if isinstance(lr, Tensor) else lr, **kwargs)


def _move_module(module: nn.Module, device: str) -> nn.Module:
    """Replace the parameters and buffers of a module by copies on a device; tied parameters stay tied."""
    moved: dict[Tensor, nn.Parameter] = {}
    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False):
            if parameter not in moved:
                moved[parameter] = nn.Parameter(parameter.detach().to(device), requires_grad=parameter.requires_grad)
            child._parameters[name] = moved[parameter]
        for name, buffer in child.named_buffers(recurse=False):
            child._buffers[name] = buffer.to(device)
    return module


def _cross_entropy(logits_nV: Tensor, targets_n: Tensor, gradients_nV: Tensor | None, gradient_scale: float) -> Tensor:
    """Stand in for the Triton kernel: one operation, which allocates the losses (n,)."""
    return logits_nV.new_zeros(len(logits_nV))


def _update_stacks(stacks: Sequence[Any], max_grad_norm: float, found_inf: Tensor | None) -> None:
    """Stand in for the Triton kernels: one operation a stack."""
    for stack in stacks:
        torch._foreach_sub_(stack.parameters, stack.gradients)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Compute attention by the kernels of compute capability 8: flash in bfloat16, memory-efficient in float32."""
    if not query.is_cuda:
        return _attention_on_cpu(query, key, value, dropout_p=dropout_p, is_causal=is_causal, scale=scale)
    assert attn_mask is None and is_causal
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (tensor.to(torch.get_autocast_dtype("cuda")) for tensor in (query, key, value))
    aten = torch.ops.aten
    if query.dtype == torch.bfloat16:
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    arguments = (query, key, value, None, query.requires_grad, dropout_p, is_causal)
    return aten._scaled_dot_product_efficient_attention(*arguments, scale=scale)[0]
