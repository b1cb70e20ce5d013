"""A LoRA layer as one matrix product: ``x (W + s B A)^T`` in place of two products and their sum.

A low-rank branch costs few multiplications, yet it reads and writes the layer's whole output twice
over, forward and backward. Folding it into the weight first costs ``r / tokens`` of the layer's own
product and nothing per token. Same function, same gradients; sums are rounded in another order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn

_TOKENS_PER_RANK = 8  # below that many, folding costs as much as it saves


class FoldedLinear(LoraLinear):  # type: ignore[misc]
    """PEFT's layer over a plain linear one, computed on ``W + s B A`` where that is exact enough.

    In float32 only: a half-precision weight would round small updates away, so under autocast the
    layer works as PEFT made it, as it does for few tokens at a high rank. Nothing is written into
    the layer's weight. Forward hooks on the factors' own modules are not called.
    """

    _folded: str

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the layer's output, shape ``(..., d_out)``, for ``x`` of shape ``(..., d_in)``."""
        a, b = self.lora_A[self._folded].weight, self.lora_B[self._folded].weight
        few = x.numel() < _TOKENS_PER_RANK * a.numel()  # tokens * d_in against rank * d_in
        half = x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type)
        result: torch.Tensor
        if few or half or args or kwargs or self.merged or self.disable_adapters:
            result = super().forward(x, *args, **kwargs)
        else:
            base, scale = self.base_layer, self.scaling[self._folded]
            result = _Product.apply(x, base.weight, base.bias, a, b, scale)  # type: ignore[no-untyped-call]
        return result


def fold(layer: Any, adapter: str) -> None:
    """Make a PEFT layer a ``FoldedLinear``, in place.

    A layer that adapts anything but a plain linear one, or that has dropout, stays as it is.

    Args:
        layer: PEFT's LoRA layer.
        adapter: Name of its only adapter.
    """
    if type(layer) is not LoraLinear or type(layer.base_layer) is not nn.Linear:
        return
    if isinstance(layer.lora_dropout[adapter], nn.Identity):
        layer.__class__ = FoldedLinear
        layer._folded = adapter


class _Product(torch.autograd.Function):
    """``x (W + s B A)^T + bias``; frozen W is folded again for the backward pass, not kept."""

    generate_vmap_rule = True  # gradients of single examples go through torch.func.vmap

    @staticmethod
    def forward(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        return F.linear(x, torch.addmm(weight, b, a, alpha=scale), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, weight, _, a, b, ctx.scale = inputs
        ctx.save_for_backward(x, weight, a, b)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        need_x, *_, need_a, need_b, _ = ctx.needs_input_grad
        grad = grads[0].reshape(-1, weight.shape[0])
        rows = x.reshape(-1, weight.shape[1])
        grad_x = grad_a = grad_b = None
        if need_x:
            grad_x = (grad @ torch.addmm(weight, b, a, alpha=ctx.scale)).reshape(x.shape)
        if need_a:
            grad_a = ((grad @ b).t() @ rows) * ctx.scale
        if need_b:
            grad_b = (grad.t() @ (rows @ a.t())) * ctx.scale
        return grad_x, None, None, grad_a, grad_b, None
