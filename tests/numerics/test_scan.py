"""The linear scan and the elementwise functions: values against plain loops, derivatives of every order in float64."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from ssm_metarl.core.elementwise import decay_and_scale, rms_norm
from ssm_metarl.core.scan import _recur, linear_scan


def loop(a_TBN, b_TBN, initial_BN=None):
    h_BN, states = torch.zeros_like(b_TBN[0]) if initial_BN is None else initial_BN, []
    for a_BN, b_BN in zip(a_TBN, b_TBN, strict=True):
        h_BN = a_BN * h_BN + b_BN
        states.append(h_BN)
    return torch.stack(states)


def plain_rms_norm(x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def plain_decay_and_scale(log_a):
    return log_a.exp(), (1 - (2 * log_a).exp()).sqrt()


def scan_arguments(steps, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(steps, 2, 3, generator=generator, dtype=dtype)
    a[steps // 2, 0] = 0
    b = torch.randn(steps, 2, 3, generator=generator, dtype=dtype)
    return a.requires_grad_(), b.requires_grad_()


def tangent(x, seed=7):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)


def derivatives(f, arguments, order):
    """Random directional derivatives of ``f`` of each order up to ``order``, and the full gradients of the last one."""
    value = sum((out.cos() * tangent(out)).sum() for out in f(*arguments))
    for level in range(order - 1):
        grads = torch.autograd.grad(value, arguments, create_graph=True)
        value = sum((grad * tangent(grad, seed=level)).sum() for grad in grads)
    return torch.autograd.grad(value, arguments)


@pytest.mark.parametrize("steps", [1, 2, 7, 300])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_scan_is_the_loop(steps, dtype, tolerance):
    a, b = scan_arguments(steps, dtype)
    initial = tangent(b[0])
    for arguments in ((a, b), (a, b, initial)):
        h = linear_scan(*arguments)
        assert h.dtype == dtype
        torch.testing.assert_close(h, loop(*arguments), rtol=tolerance, atol=tolerance)


def test_a_zero_factor_starts_anew_exactly():
    a, b = (x.detach() for x in scan_arguments(8, torch.float32))
    a[5] = 0
    assert torch.equal(linear_scan(a, b)[5:], linear_scan(a[5:], b[5:]))


def test_strided_and_expanded_inputs_give_the_same_bits():
    a, b = (x.detach() for x in scan_arguments(6, torch.float32))
    wide = torch.stack([b, b], dim=-1)[..., 0]
    row = a[:1, :1].expand_as(b)
    assert not wide.is_contiguous()
    assert torch.equal(linear_scan(row, wide), linear_scan(row.contiguous(), b))


def test_non_finite_numbers_travel_silently():
    a = torch.full((3, 1, 1), 1e30)
    h = linear_scan(a, torch.tensor([1e30, 0.0, float("nan")]).reshape(3, 1, 1)).flatten()
    assert h[1].isinf() and h[2].isnan()


def test_torch_slices_of_other_devices_run_through_the_same_loop():
    a, b = (x.detach() for x in scan_arguments(6))
    h = torch.empty_like(b)
    _recur(a.unbind(0)[:0:-1], b.unbind(0)[::-1], h.unbind(0)[::-1], torch)
    torch.testing.assert_close(h.flip(0), loop(torch.cat([a[:1], a[1:].flip(0)]), b.flip(0)))


@pytest.mark.parametrize("shapes", [((3, 2), (2, 2)), ((0, 2), (0, 2))])
def test_wrong_shapes_are_named(shapes):
    with pytest.raises(ValueError, match="one shape"):
        linear_scan(*map(torch.zeros, shapes))


FUNCTIONS = {
    "scan": (linear_scan, loop, scan_arguments(5)),
    "scan of one step": (linear_scan, loop, scan_arguments(1)),
    "scan of two steps": (linear_scan, loop, scan_arguments(2)),
    "scan from a state": (
        linear_scan,
        loop,
        (*scan_arguments(4), tangent(torch.zeros(2, 3).double()).requires_grad_()),
    ),
    "rms_norm": (rms_norm, plain_rms_norm, (scan_arguments(3)[1],)),
    "decay_and_scale": (decay_and_scale, plain_decay_and_scale, (-scan_arguments(3)[1].detach().abs() - 0.1,)),
}
cases = pytest.mark.parametrize(("function", "plain", "arguments"), FUNCTIONS.values(), ids=FUNCTIONS)


@cases
def test_first_and_second_derivatives_agree_with_finite_differences(function, plain, arguments):
    arguments = tuple(argument.detach().clone().requires_grad_() for argument in arguments)
    assert gradcheck(function, arguments)
    assert gradgradcheck(function, arguments)


@cases
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_derivatives_of_any_order_are_those_of_the_plain_formula(function, plain, arguments, order):
    arguments = tuple(argument.detach().clone().requires_grad_() for argument in arguments)

    def as_tuple(f):
        return lambda *xs: out if isinstance(out := f(*xs), tuple) else (out,)

    ours = derivatives(as_tuple(function), arguments, order)
    theirs = derivatives(as_tuple(plain), arguments, order)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-10)


def test_third_order_agrees_with_finite_differences():
    a, b = (x.detach().clone().requires_grad_() for x in scan_arguments(4))

    def second_order(a, b):
        value = (linear_scan(a, b) ** 2).sum()
        grads = torch.autograd.grad(value, (a, b), create_graph=True)
        return torch.autograd.grad(sum((g * tangent(g)).sum() for g in grads), (a, b), create_graph=True)

    assert gradcheck(second_order, (a, b))


@cases
def test_functional_transforms_agree_with_autograd(function, plain, arguments):
    def value(*xs):
        out = function(*xs)
        return sum((o * tangent(o)).sum() for o in (out if isinstance(out, tuple) else (out,)))

    arguments = tuple(argument.detach() for argument in arguments)
    leaves = tuple(argument.clone().requires_grad_() for argument in arguments)
    (expected, *_) = torch.autograd.grad(value(*leaves), leaves, create_graph=True)
    torch.testing.assert_close(torch.func.grad(value)(*arguments), expected.detach())
    (second, *_) = torch.autograd.grad(expected.square().sum(), leaves)
    nested = torch.func.grad(lambda *xs: torch.func.grad(value)(*xs).square().sum())(*arguments)
    torch.testing.assert_close(nested, second)


def test_decay_and_scale_are_precise_near_one_and_finite_at_zero():
    log_a = torch.tensor([-1e-4, -1e-3, -0.1, -20.0, -1e4], dtype=torch.float64)
    a, scale = decay_and_scale(log_a.float())
    np.testing.assert_allclose(scale.numpy(), np.sqrt(-np.expm1(2 * log_a.numpy())), rtol=3e-7)
    np.testing.assert_allclose(a.numpy(), np.exp(log_a.numpy()), rtol=3e-7)
    log_a.requires_grad_()
    (gradient,) = torch.autograd.grad(sum(x.sum() for x in decay_and_scale(log_a)), log_a)
    assert gradient.isfinite().all()
