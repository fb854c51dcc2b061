"""The hyperbolic tangent of the kernels, which Triton's interpreter does not have."""

import pytest
import torch
import triton
import triton.language as tl

from kernels.tanh import tanh
from tests.kernel_helpers import DEVICE


@triton.jit
def kernel(X, Y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(Y + i, tanh(tl.load(X + i, i < n, 0.0)), i < n)


def ours(x: torch.Tensor) -> torch.Tensor:
    y = torch.empty_like(x)
    kernel[(triton.cdiv(len(x), 1024),)](x, y, len(x), BLOCK=1024)
    return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_it_is_right_to_about_a_rounding_near_zero_too(dtype):
    sizes = torch.cat([torch.logspace(-30, 2, 4000, dtype=dtype), torch.linspace(0.5, 0.75, 2000, dtype=dtype)])
    x = torch.cat([sizes, -sizes]).to(DEVICE)
    exact = x.double().tanh()
    error = (ours(x).double() - exact).abs() / exact.abs()
    assert error.max() < 3 * torch.finfo(dtype).eps


def test_its_ends_are_one_and_what_is_no_number_stays_none():
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, 1e30, -3e38], device=DEVICE)
    assert torch.equal(ours(x).nan_to_num(7.0), torch.tensor([1.0, -1.0, 7.0, 0.0, 1.0, -1.0], device=DEVICE))
