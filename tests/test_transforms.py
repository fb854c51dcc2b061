"""Derivatives that are asked for in other ways than by `backward`: by torch.func, and forward-mode ones."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch.func import grad, jacrev, jvp, vjp, vmap

import kernels
from tests.kernel_helpers import DEVICE

torch.manual_seed(0)
Q, K, V = (torch.randn(2, 2, 5, 8, device=DEVICE) for _ in range(3))
X, W, B = torch.randn(2, 6, 9, device=DEVICE), torch.randn(9, 9, device=DEVICE), torch.randn(9, device=DEVICE)
TARGETS = torch.tensor([1, 0, 8, -1, 3, 3], device=DEVICE)
STARTS = torch.tensor([0, 2], dtype=torch.int32)
BACKENDS = ["torch", "triton"]


def plain_attention(q, k, v):
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    unseen = torch.ones(scores.shape[-2:], device=DEVICE, dtype=bool).triu(1)
    return scores.masked_fill(unseen, -torch.inf).softmax(-1) @ v


def plain_loss(logits):
    return F.cross_entropy(logits, TARGETS, ignore_index=-1, reduction="sum")


OPTIONS = {
    "label_smoothing": 0.1,
    "z_loss": 0.1,
    "softcap": 2.0,
    "weights": torch.rand(2, 3, device=DEVICE),
    "reduction": "none",
}


def plain_losses(logits):
    logits = 2 * torch.tanh(logits / 2)
    losses = F.cross_entropy(logits, TARGETS, ignore_index=-1, reduction="none", label_smoothing=0.1)
    losses = losses + torch.where(TARGETS == -1, 0.0, 0.1 * logits.logsumexp(-1) ** 2)
    return losses.view(2, 3) * OPTIONS["weights"]


# A function of one tensor, three such tensors, and the function by torch's own operations.
FUNCTIONS = {
    "attention": (
        lambda q, **options: kernels.attention(q[None], K[:1], V[:1], **options)[0],
        Q,
        lambda q: plain_attention(q, K[0], V[0]),
    ),
    "packed attention": (
        lambda q, **options: kernels.attention_packed(q, K[0], V[0], STARTS, **options),
        Q,  # two tokens and five heads here
        lambda q: plain_attention(*(x.transpose(0, 1) for x in (q, K[0], V[0]))).transpose(0, 1),
    ),
    "layer norm": (kernels.layer_norm, X, lambda x: F.layer_norm(x, x.shape[-1:])),
    "rms norm": (kernels.rms_norm, X, lambda x: F.rms_norm(x, x.shape[-1:])),
    "cross-entropy": (lambda x, **options: kernels.cross_entropy(x, TARGETS, **options), X, plain_loss),
    "linear cross-entropy": (
        lambda x, **options: kernels.linear_cross_entropy(x, W, TARGETS, B, **options),
        X,
        lambda x: plain_loss(F.linear(x, W, B)),
    ),
    "cross-entropy with options": (
        lambda x, **options: kernels.cross_entropy(x.view(2, 3, 9), TARGETS.view(2, 3), **OPTIONS, **options),
        X,
        plain_losses,
    ),
    "linear cross-entropy with options": (
        lambda x, **options: kernels.linear_cross_entropy(
            x.view(2, 3, 9), W, TARGETS.view(2, 3), B, **OPTIONS, **options
        ),
        X,
        lambda x: plain_losses(F.linear(x, W, B)),
    ),
}
every = pytest.mark.parametrize("name", FUNCTIONS)
either = pytest.mark.parametrize("backend", BACKENDS)


def of(name: str, backend: str):
    ours, inputs, plain = FUNCTIONS[name]
    return (lambda x: ours(x, backend=backend)), inputs, plain


def near(a, b) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@every
@either
def test_torch_func_differentiates_backward(name, backend):
    ours, inputs, plain = of(name, backend)
    upstream = torch.randn_like(plain(inputs[0]))
    (got,), (wanted,) = (vjp(f, inputs[0])[1](upstream) for f in (ours, plain))
    assert near(got, wanted)
    assert near(grad(lambda x: ours(x).sin().sum())(inputs[0]), grad(lambda x: plain(x).sin().sum())(inputs[0]))


@every
@either
def test_gradients_a_sample(name, backend):
    ours, inputs, plain = of(name, backend)
    assert near(vmap(ours)(inputs), torch.stack([plain(x) for x in inputs]))
    got, wanted = (vmap(grad(lambda x, f=f: f(x).sin().sum()))(inputs) for f in (ours, plain))
    assert near(got, wanted)
    leaf = inputs.clone().requires_grad_()
    vmap(ours)(leaf).sin().sum().backward()
    assert near(leaf.grad, wanted)


@every
def test_torch_differentiates_forward_where_it_can(name):
    ours, inputs, plain = of(name, "torch")
    tangent = torch.randn_like(inputs[0])
    wanted = jvp(plain, (inputs[0],), (tangent,))[1]
    assert near(jvp(ours, (inputs[0],), (tangent,))[1], wanted)
    with forward_ad.dual_level():
        dual = ours(forward_ad.make_dual(inputs[0], tangent))
        assert near(forward_ad.unpack_dual(dual).tangent, wanted)


@every
def test_triton_has_no_forward_derivative_and_says_so(name):
    ours, inputs, _ = of(name, "triton")
    with pytest.raises(NotImplementedError, match="has no forward-mode derivative .* use backend='torch'"):
        jvp(ours, (inputs[0],), (inputs[0],))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        ours(forward_ad.make_dual(inputs[0], inputs[0]))


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "attention" not in name and name != "rms norm"])
def test_a_hessian_is_torchs(name):
    ours, inputs, plain = of(name, "torch")
    hessians = [torch.func.hessian(lambda x, f=f: f(x).sin().sum())(inputs[0]) for f in (ours, plain)]
    assert near(*hessians) and hessians[0].abs().max() > 1e-3


@every
def test_a_second_derivative_in_triton_is_refused_and_not_made_up(name):
    ours, inputs, _ = of(name, "triton")
    with pytest.raises(RuntimeError):
        jacrev(grad(lambda x: ours(x).sin().sum()))(inputs[0])


def test_a_gradient_in_place_inside_a_transform_is_refused():
    with pytest.raises(ValueError, match="in_place is True inside a transform"):
        grad(lambda x: kernels.cross_entropy(x * 1, TARGETS, in_place=True, backend="triton"))(X[0])
