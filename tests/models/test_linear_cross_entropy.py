"""The loss of a linear head is summed in float32, with gradients as exact as the reference, in every dtype."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from peftkit.models.linear_cross_entropy import Head, summed_loss, token_losses

VOCABULARY, WIDTH, LABELS = 600, 32, 1300  # no multiple of what heads are padded to; three pieces
HALVES = [torch.bfloat16, torch.float16]


def head_of(shift: float = 0.0, *, trained: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    linear = nn.Linear(WIDTH, VOCABULARY, bias=bool(shift)).requires_grad_(trained)
    with torch.no_grad():
        linear.weight.mul_(2)
        if shift:
            linear.bias.fill_(shift)
    return linear


def inputs(labels: int = LABELS) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(labels, WIDTH, generator=generator)
    return hidden.requires_grad_(), torch.randint(VOCABULARY, (labels,), generator=generator)


def exact(linear: nn.Linear, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss and gradients of hidden states and weight in float64, from what the operands are in `dtype`."""
    hidden, targets = inputs()
    rows, weight = (each.detach().to(dtype).double().requires_grad_() for each in (hidden, linear.weight))
    bias = None if linear.bias is None else linear.bias.detach().double()
    loss = functional.cross_entropy(functional.linear(rows, weight, bias), targets, reduction="sum")
    of_hidden, of_weight = torch.autograd.grad(loss, (rows, weight))
    return loss, of_hidden, of_weight


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("shift", [0.0, -90.0])
def test_loss_and_gradients_are_those_of_float64_wherever_the_logits_are(dtype: torch.dtype, shift: float) -> None:
    linear = head_of(shift)
    loss, of_hidden, of_weight = exact(linear, dtype)
    hidden, targets = inputs()

    found = summed_loss(hidden, Head(linear), targets, dtype)
    torch.autograd.backward(found)

    assert found.dtype == torch.float32
    assert hidden.grad is not None
    assert linear.weight.grad is not None
    assert found.item() == pytest.approx(loss.item(), rel=1e-6)
    bound = {torch.float32: 1e-5, torch.bfloat16: 3e-3, torch.float16: 5e-4}[dtype]  # an error is rounded to `dtype`
    assert off(hidden.grad, of_hidden) < bound
    assert off(linear.weight.grad, of_weight) < bound


@pytest.mark.parametrize("dtype", HALVES)
def test_no_gradient_is_less_exact_than_that_of_the_stock_loss_under_autocast(dtype: torch.dtype) -> None:
    linear = head_of(-30.0)
    _, of_hidden, of_weight = exact(linear, dtype)
    stock, targets = inputs()
    with torch.autocast("cpu", dtype):
        logits = linear(stock).float()
    torch.autograd.backward(functional.cross_entropy(logits, targets, reduction="sum"))
    assert stock.grad is not None
    assert linear.weight.grad is not None
    reference = off(stock.grad, of_hidden), off(linear.weight.grad, of_weight)
    linear.weight.grad = None
    hidden, _ = inputs()

    torch.autograd.backward(summed_loss(hidden, Head(linear), targets, dtype))

    assert hidden.grad is not None
    assert linear.weight.grad is not None
    assert off(hidden.grad, of_hidden) <= reference[0]
    assert off(linear.weight.grad, of_weight) <= reference[1]


def test_a_sum_beyond_what_fp16_can_hold_is_finite() -> None:
    linear = head_of()
    hidden, targets = inputs(40_000)

    with torch.autocast("cpu", torch.float16):
        loss = summed_loss(hidden, Head(linear), targets, torch.float16)

    assert loss.item() > torch.finfo(torch.float16).max
    assert loss.item() == pytest.approx(summed_loss(hidden, Head(linear), targets, torch.float32).item(), rel=1e-3)


def test_the_error_of_a_rare_token_is_not_lost_in_fp16() -> None:
    linear = head_of(trained=False)
    with torch.no_grad():
        linear.weight.zero_()
        linear.weight[0] = 1.0  # after a hidden state of ones, the first token is nearly certain
    hidden = torch.ones(1, WIDTH, dtype=torch.float16).mul_(0.6).requires_grad_()

    loss = summed_loss(hidden, Head(linear), torch.tensor([0]), torch.float16)
    torch.autograd.backward(loss * 2.0**14)  # as a gradient scaler does

    wanted = -(1 - torch.softmax(torch.tensor([0.6 * WIDTH, *[0.0] * (VOCABULARY - 1)]), 0)[0]) * 2.0**14
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float16
    assert hidden.grad[0, 0].item() == pytest.approx(float(wanted), rel=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_the_losses_of_the_tokens_add_up_to_the_loss(dtype: torch.dtype) -> None:
    linear = head_of(-5.0)
    hidden, targets = inputs()

    losses = token_losses(hidden, Head(linear), targets, dtype)

    assert losses.shape == (LABELS,)
    assert losses.dtype == torch.float32
    assert losses.sum().item() == pytest.approx(summed_loss(hidden, Head(linear), targets, dtype).item(), rel=1e-6)


def test_without_a_label_the_loss_is_zero_and_every_gradient_is_there() -> None:
    linear = head_of()
    hidden, targets = inputs(0)

    loss = summed_loss(hidden, Head(linear), targets, torch.float32)
    torch.autograd.backward(loss)

    assert loss.item() == 0
    assert hidden.grad is not None
    assert linear.weight.grad is not None
    assert not linear.weight.grad.any()


def test_a_loss_whose_gradients_were_used_says_so() -> None:
    linear = head_of()
    hidden, targets = inputs()
    loss = summed_loss(hidden, Head(linear), targets, torch.float32)
    torch.autograd.backward(loss, retain_graph=True)

    with pytest.raises(RuntimeError, match="compute the loss again"):
        torch.autograd.backward(loss)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("dtype", HALVES)
def test_on_a_gpu_the_mixed_matmul_is_as_exact(dtype: torch.dtype) -> None:
    linear = head_of(-90.0)
    loss, of_hidden, of_weight = exact(linear, dtype)
    linear = linear.cuda()
    hidden, targets = (each.detach().cuda() for each in inputs())
    hidden.requires_grad_()

    found = summed_loss(hidden, Head(linear), targets, dtype)
    torch.autograd.backward(found)

    assert hidden.grad is not None
    assert linear.weight.grad is not None
    assert found.item() == pytest.approx(loss.item(), rel=1e-5)
    bound = {torch.bfloat16: 3e-3, torch.float16: 5e-4}[dtype]
    assert off(hidden.grad.cpu(), of_hidden) < bound
    assert off(linear.weight.grad.cpu(), of_weight) < bound
