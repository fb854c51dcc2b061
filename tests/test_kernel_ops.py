"""The kernels as operators of torch: registration, compiling, autocast, checkpointing, DDP, dispatch and bad input."""

import importlib
import os
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import kernels
from engine.config.flags import parse
from engine.registry import build_model
from kernels import dispatch
from tests.conftest import ROOT
from tests.helpers import ok
from tests.kernel_helpers import DEVICE
from tests.matrices import matrix

H, HKV, T, D, C, V = 4, 2, 19, 16, 24, 37


def qkv(**options) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(2, heads, T, D, device=DEVICE, **options) for heads in (H, HKV, HKV))


def block(backend: str):
    """One operation of each kind in a row, and the leaves it goes by."""
    torch.manual_seed(0)
    leaves = {
        "x": torch.randn(2, T, H * D, device=DEVICE),
        "weight": torch.randn(H * D, device=DEVICE),
        "head": torch.randn(V, H * D, device=DEVICE),
    }
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    targets = torch.randint(V, (2 * T,), device=DEVICE)

    def run(x, weight, head):
        q, k, v = (x.view(2, T, H, D).transpose(1, 2) * n for n in (1.0, 0.5, 0.25))
        y = kernels.attention(q, k, v, window=7, backend=backend).transpose(1, 2).reshape(x.shape)
        y, x = kernels.layer_norm(y, weight, residual=x, backend=backend)
        y = kernels.rms_norm(y, weight, 1e-5, backend=backend) + x
        rows = y.flatten(0, 1)
        loss = kernels.linear_cross_entropy(rows, head, targets, chunk_rows=16, backend=backend)
        loss = loss + kernels.cross_entropy(rows @ head.T, targets, backend=backend)
        options = {"weights": targets.view(2, T) / V, "z_loss": 0.01, "softcap": 20.0, "backend": backend}
        deep = targets.view(2, T)
        each = kernels.linear_cross_entropy(y, head, deep, chunk_rows=16, reduction="none", **options)
        return loss + each.mean() + kernels.cross_entropy(y @ head.T, deep, reduction="mean", **options)

    return run, leaves


def loss_and_gradients(run, leaves) -> list[torch.Tensor]:
    for leaf in leaves.values():
        leaf.grad = None
    loss = run(**leaves)
    loss.backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves.values())]


def assert_close(ours: list, theirs: list, **tolerance) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


OPS = torch.ops.charlm
LEAF = {"device": DEVICE, "requires_grad": True}
SAMPLES = {
    "attention": lambda: (OPS.attention, (*qkv(requires_grad=True), *[None] * 6, None, 0, 0.25, 0.0, 0.0)),
    "attention with options": lambda: (
        OPS.attention,
        (
            *qkv(requires_grad=True),
            torch.rand(H, device=DEVICE),
            torch.tensor([5], device=DEVICE),
            torch.arange(2 * T, device=DEVICE).view(2, T) % 3 > 0,
            None,
            None,
            None,
            3,
            2,
            0.25,
            4.0,
            0.5,
        ),
    ),
    "norm": lambda: (
        OPS.norm,
        (*torch.randn(2, 5, C, **LEAF).unbind(), *torch.randn(2, C, **LEAF).unbind(), 1e-5, False),
    ),
    "rms norm": lambda: (OPS.norm, (torch.randn(5, C, **LEAF), None, None, None, 1e-5, True)),
    "cross_entropy": lambda: (
        OPS.cross_entropy,
        (torch.randn(5, V, **LEAF), torch.randint(V, (5,), device=DEVICE), -1, 0.1, 0.01, 5.0, False),
    ),
    "linear_cross_entropy": lambda: (
        OPS.linear_cross_entropy,
        (
            torch.randn(5, C, **LEAF),
            torch.randn(V, C, **LEAF),
            torch.randn(V, **LEAF),
            torch.randint(V, (5,), device=DEVICE),
            torch.rand(5, device=DEVICE),
            -1,
            0.1,
            0.01,
            5.0,
            2,
            True,
            [True] * 3,
        ),
    ),
    "linear_cross_entropy a row": lambda: (
        OPS.linear_cross_entropy_rows,
        (
            torch.randn(5, C, **LEAF),
            torch.randn(V, C, **LEAF),
            torch.randn(V, **LEAF),
            torch.randint(V, (5,), device=DEVICE),
            -1,
            0.1,
            0.01,
            5.0,
            2,
            True,
        ),
    ),
}


@pytest.mark.parametrize("name", matrix(SAMPLES, lambda name: "options" not in name))
def test_operators_are_registered_as_torch_wants_them(name):
    op, arguments = SAMPLES[name]()
    torch.library.opcheck(op.default, arguments)


def test_the_compiler_takes_them_whole():
    run, leaves = block("triton")
    plain = loss_and_gradients(run, leaves)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert_close(loss_and_gradients(compiled, leaves), plain)


def test_the_compiler_takes_a_whole_transformer_that_runs_on_them():
    config, _ = parse(
        ["--n-embd", "32", "--n-head", "2", "--n-layer", "2", "--context", "16", "--positions", "rope"]
        + ["--attention", "triton", "--norm-kernel", "triton"]
    )
    torch.manual_seed(0)
    model = build_model(config, 30).to(DEVICE)
    tokens = torch.randint(30, (2, 16), device=DEVICE)
    losses = [
        call(tokens, tokens, want_logits=False).nll_sum
        for call in (model, torch.compile(model, fullgraph=True, backend="aot_eager"))
    ]
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    assert_close(losses[:1], losses[1:])
    assert_close(*gradients)


def test_checkpointing_draws_the_same_dropout_again():
    q, k, v = qkv(requires_grad=True)

    def attend(q, k, v):
        return kernels.attention(q, k, v, dropout=0.5, backend="triton")

    found = []
    for call in (attend, lambda *x: checkpoint(attend, *x, use_reentrant=False)):
        torch.manual_seed(0)
        q.grad = None
        out = call(q, k, v)
        out.square().sum().backward()
        found.append([out.detach(), q.grad.clone()])
    assert_close(*found, rtol=0, atol=0)


@pytest.mark.skipif(DEVICE != "cpu", reason="float64 runs in the interpreter only")
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_autocast_leaves_float64_alone(backend):
    q, hidden, weight = (torch.randn(shape, dtype=torch.float64) for shape in ((1, 2, 3, 8), (3, 8), (9, 8)))
    targets = torch.tensor([1, 0, 8])
    exact = kernels.attention(q, q, q, backend=backend), kernels.linear_cross_entropy(hidden, weight, targets)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kernels.attention(q, q, q, backend=backend), exact[0])
        assert torch.equal(kernels.linear_cross_entropy(hidden, weight, targets, backend=backend), exact[1])
        with pytest.raises(ValueError, match="weight is torch.float64 and hidden is torch.float32"):
            kernels.linear_cross_entropy(hidden.float(), weight, targets, backend=backend)


def test_autocast_narrows_attention_and_leaves_norms_and_losses_precise():
    run, leaves = block("triton")
    torch_run, torch_leaves = block("torch")
    with torch.autocast(DEVICE, torch.bfloat16):
        out = kernels.attention(*qkv(), backend="triton")
        y, s = kernels.layer_norm(out, residual=torch.zeros(out.shape, device=DEVICE), backend="triton")
        loss = kernels.cross_entropy(
            out.flatten(0, 2), torch.zeros(2 * H * T, dtype=torch.int64, device=DEVICE), backend="triton"
        )
        assert out.dtype == torch.bfloat16 and y.dtype == s.dtype == loss.dtype == torch.float32
        ours = loss_and_gradients(run, leaves)
        theirs = loss_and_gradients(torch_run, torch_leaves)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype and (a - b).norm() < 0.03 * b.norm()


DDP = """
import os, sys
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
import kernels

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = kernels.LayerNorm(32, backend="triton")
        self.attend = kernels.Attention(backend="triton")
        self.head = kernels.LinearCrossEntropy(32, 11, chunk_rows=4, backend="triton")
    def forward(self, x, targets):
        y, x = self.norm(x, residual=x)
        heads = y.view(*y.shape[:2], 2, 16).transpose(1, 2)
        y = self.attend(heads, heads, heads).transpose(1, 2).reshape(x.shape)
        return self.head((x + y).flatten(0, 1), targets)

path, other = sys.argv[1], os.fork()
rank = int(other != 0)
dist.init_process_group("gloo", store=dist.FileStore(path, 2), rank=rank, world_size=2)
torch.manual_seed(0)
torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
model, x, targets = Model(), torch.randn(4, 5, 32), torch.randint(11, (20,))
whole = Model()
whole.load_state_dict(model.state_dict())
whole(x, targets).backward()
model = DistributedDataParallel(model)
(2 * model(x[2 * rank : 2 * rank + 2], targets[10 * rank : 10 * rank + 10])).backward()
for ours, theirs in zip(model.parameters(), whole.parameters()):
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
dist.destroy_process_group()
assert not rank or os.waitpid(other, 0)[1] == 0
"""


def test_two_ranks_of_ddp_have_the_gradients_of_one(cli, tmp_path):
    (tmp_path / "ranks.py").write_text(DDP)
    ok(cli(str(tmp_path / "ranks.py"), tmp_path / "store"))


BACKWARDS = {
    "attention": lambda: kernels.attention(*qkv(requires_grad=True), backend="triton"),
    "packed attention": lambda: kernels.attention_packed(
        *(x[0].transpose(0, 1) for x in qkv(requires_grad=True)), torch.tensor([0, 3, T]).int(), backend="triton"
    ),
    "a norm": lambda: kernels.layer_norm(torch.randn(5, C, **LEAF), backend="triton"),
    "cross-entropy": lambda: kernels.cross_entropy(
        torch.randn(5, V, **LEAF), torch.zeros(5, dtype=torch.int64, device=DEVICE), reduction="none", backend="triton"
    ),
}


@pytest.mark.parametrize("name", BACKWARDS)
def test_a_backward_makes_no_zeros_and_reads_no_lengths_again(name, monkeypatch):
    out = BACKWARDS[name]()
    called = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append(function.name())
            return function(*args, **kwargs or {})

    monkeypatch.setattr(importlib.import_module("kernels.attention.op"), "longest_sequences", None)
    with Watch():
        out.backward(torch.ones_like(out))
    assert [name for name in called if "charlm" in name], "what was watched"
    assert not [name for name in called if "zeros" in name]


def test_auto_is_torch_where_triton_was_not_measured_to_win(monkeypatch):
    def never(*_):
        raise AssertionError("the Triton kernels ran")

    for module, name in (("attention.operators", "forward"), ("norm.op", "_forward"), ("cross_entropy.op", "_forward")):
        monkeypatch.setattr(importlib.import_module(f"kernels.{module}"), name, never)
    run, leaves = block("auto")
    plain, plain_leaves = block("torch")
    assert_close(loss_and_gradients(run, leaves), loss_and_gradients(plain, plain_leaves), rtol=0, atol=0)


def test_a_choice_that_cannot_be_honoured_says_why(monkeypatch, asked_anew):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x = torch.randn(3, 8)
    for call in (
        lambda: kernels.layer_norm(x, backend="triton"),
        lambda: kernels.attention(x[None, None], x[None, None], x[None, None], backend="triton"),
        lambda: kernels.cross_entropy(x, torch.zeros(3, dtype=torch.int64), backend="triton"),
    ):
        with pytest.raises(RuntimeError, match="cannot run here: they need a GPU, not cpu .TRITON_INTERPRET=1"):
            call()
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    asked_anew()
    with pytest.raises(RuntimeError, match="triton is not installed"):
        kernels.layer_norm(x, backend="triton")
    assert torch.equal(kernels.layer_norm(x), torch.nn.functional.layer_norm(x, (8,)))
    with pytest.raises(ValueError, match="backend is 'cuda'; it may be auto, triton, torch"):
        kernels.layer_norm(x, backend="cuda")


def test_importing_needs_no_triton_and_asks_no_device():
    code = (
        "import sys; sys.modules['triton'] = None; import torch\n"
        "def never(*_): raise SystemExit('asked a device')\n"
        "torch.cuda.is_available = torch.cuda.get_device_capability = torch.cuda.current_device = never\n"
        "import kernels; assert not [name for name in sys.modules if name.startswith('triton.')]\n"
        "assert kernels.layer_norm(torch.ones(2, 4)).shape == (2, 4)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("way", matrix([("0", 1), ("1", 1), ("1", 4)], [("1", 4)]), ids=str)
def test_whatever_is_imported_first_the_functions_keep_their_names(way):
    """`kernels.attention` is a folder and a function: each child process imports another module of `kernels` first."""
    interpret, every = way
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "kernels").rglob("*.py"))
        if path.name != "__main__.py"
    ][::every]
    code = (
        "import importlib, os, sys, torch, triton\n"
        "for first in sys.argv[1:]:\n"
        "    if child := os.fork():\n"
        "        assert os.waitpid(child, 0)[1] == 0, first\n"
        "        continue\n"
        "    importlib.import_module(first)\n"
        "    import kernels\n"
        "    from kernels.attention import launch, op\n"
        "    from kernels.cross_entropy import kernel, op as losses\n"
        "    assert kernels.attention is op.attention and kernels.cross_entropy is losses.cross_entropy\n"
        "    assert all(callable(getattr(kernels, name)) for name in kernels.__all__ if name.islower())\n"
        "    os._exit(0)"
    )
    env = os.environ | {"TRITON_INTERPRET": interpret}
    done = subprocess.run([sys.executable, "-c", code, *modules], cwd=ROOT, env=env, capture_output=True, text=True)
    assert len(modules) > 20 // every and done.returncode == 0, done.stderr


Q, K = torch.zeros(2, 4, 5, 16), torch.zeros(2, 2, 7, 16)
ROWS, TARGETS = torch.zeros(3, 8), torch.zeros(3, dtype=torch.int64)
STARTS = torch.tensor([0, 2, 5], dtype=torch.int32)
PACKED = torch.zeros(5, 4, 16, device=DEVICE)


def attend(q=Q, k=K, v=K, **options):
    return kernels.attention(q, k, v, **options)


BAD = {
    r"q has shape \(4, 5, 16\); it has to have 4 dimensions": lambda: attend(Q[0]),
    r"v has shape \(2, 2, 6, 16\); it has to be k's, \(2, 2, 7, 16\)": lambda: attend(v=K[:, :, 1:]),
    "q and k have batches of 1 and 2": lambda: attend(Q[:1]),
    "k has head size 8 and q 16": lambda: attend(k=K[..., :8], v=K[..., :8]),
    "q has 4 heads and k 3; k's have to divide q's": lambda: attend(
        k=torch.zeros(2, 3, 7, 16), v=torch.zeros(2, 3, 7, 16)
    ),
    "k is torch.float16 and q is torch.float32": lambda: attend(k=K.half(), v=K.half()),
    "q is torch.int64; it may be float32": lambda: attend(Q.long(), K.long(), K.long()),
    "k is on meta and q on cpu": lambda: attend(k=K.to("meta"), v=K.to("meta")),
    "q's last dimension has stride 5; it has to be 1": lambda: attend(torch.zeros(2, 4, 16, 5).transpose(2, 3)),
    "q has head size 129; the Triton kernels take 1 to 128": lambda: attend(
        *(torch.zeros(1, 1, 2, 129, device=DEVICE) for _ in range(3)), backend="triton"
    ),
    "q has head size 0": lambda: attend(*(torch.zeros(1, 1, 2, 0) for _ in range(3))),
    "window is -1; it may be 1 or more": lambda: attend(window=-1),
    "window is 0; it may be 1 or more": lambda: attend(window=0),
    "scale is -1.0; it has to be positive": lambda: attend(scale=-1.0),
    "scale is nan": lambda: attend(scale=float("nan")),
    "dropout is 1.0; it may be 0 or more, below 1": lambda: attend(dropout=1.0),
    r"slopes has shape \(3,\); it has to be one a head, \(4,\)": lambda: attend(slopes=torch.zeros(3)),
    r"seed is torch.float32 of shape \(1,\); it has to be one int64": lambda: attend(dropout=0.5, seed=torch.zeros(1)),
    "starts_q runs 0, 2, 5; it has to rise from 0, to at most the 4 rows": lambda: kernels.attention_packed(
        PACKED[:4], PACKED[:4], PACKED[:4], STARTS
    ),
    "starts_k runs 0, 6, 5; it has to rise": lambda: kernels.attention_packed(
        PACKED, PACKED, PACKED, STARTS, torch.tensor([0, 6, 5], dtype=torch.int32)
    ),
    "starts_q runs 1, 2, 5; it has to rise from 0": lambda: kernels.attention_packed(
        PACKED, PACKED, PACKED, torch.tensor([1, 2, 5], dtype=torch.int32), STARTS, backend="triton"
    ),
    "starts_q is torch.int64": lambda: kernels.attention_packed(PACKED, PACKED, PACKED, STARTS.long()),
    "starts_q and starts_k hold 3 and 2 numbers": lambda: kernels.attention_packed(
        PACKED, PACKED, PACKED, STARTS, STARTS[::2]
    ),
    r"q has shape \(2, 4, 5, 16\); it has to have 3 dimensions": lambda: kernels.attention_packed(Q, K, K, STARTS),
    r"x has shape \(\); its last dimension may be 1 to 65536": lambda: kernels.layer_norm(torch.tensor(1.0)),
    r"x has shape \(1, 65537\)": lambda: kernels.rms_norm(torch.zeros(1, 65537)),
    r"weight has shape \(7,\); it has to be \(8,\)": lambda: kernels.layer_norm(ROWS, torch.zeros(7)),
    r"bias has shape \(9,\)": lambda: kernels.layer_norm(ROWS, None, torch.zeros(9)),
    r"residual has shape \(2, 8\); it has to be x's, \(3, 8\)": lambda: kernels.rms_norm(ROWS, residual=ROWS[:2]),
    "x is torch.int64": lambda: kernels.layer_norm(ROWS.long()),
    "weight is on meta and x on cpu": lambda: kernels.layer_norm(ROWS, torch.zeros(8, device="meta")),
    "eps is -1.0": lambda: kernels.layer_norm(ROWS, eps=-1.0),
    r"logits has shape \(3, 0\); it has to be \(..., vocabulary\)": lambda: kernels.cross_entropy(ROWS[:, :0], TARGETS),
    r"targets has shape \(3,\); it has to be one a row, \(\)": lambda: kernels.cross_entropy(ROWS[0], TARGETS),
    r"weights has shape \(2,\); it has to be one a row, \(3,\)": lambda: kernels.cross_entropy(
        ROWS, TARGETS, weights=torch.ones(2)
    ),
    "weights is torch.int64; it has to be of a floating": lambda: kernels.linear_cross_entropy(
        ROWS, ROWS, TARGETS, weights=TARGETS
    ),
    "weights is on meta": lambda: kernels.cross_entropy(ROWS, TARGETS, weights=torch.ones(3, device="meta")),
    "z_loss is -0.1; it may be 0 or more": lambda: kernels.cross_entropy(ROWS, TARGETS, z_loss=-0.1),
    "z_loss is inf": lambda: kernels.linear_cross_entropy(ROWS, ROWS, TARGETS, z_loss=float("inf")),
    "softcap is 0.0; it has to be positive and finite, or None": lambda: kernels.cross_entropy(
        ROWS, TARGETS, softcap=0.0
    ),
    "softcap is nan": lambda: kernels.linear_cross_entropy(ROWS, ROWS, TARGETS, softcap=float("nan")),
    "logits is torch.int64": lambda: kernels.cross_entropy(ROWS.long(), TARGETS),
    "logits' last dimension has stride 3": lambda: kernels.cross_entropy(torch.zeros(8, 3).T, TARGETS),
    r"targets has shape \(2,\); it has to be one a row, \(3,\)": lambda: kernels.cross_entropy(ROWS, TARGETS[:2]),
    "targets is torch.int32; it has to be int64": lambda: kernels.cross_entropy(ROWS, TARGETS.int()),
    "targets is on meta": lambda: kernels.cross_entropy(ROWS, TARGETS.to("meta")),
    "label_smoothing is 1.0": lambda: kernels.cross_entropy(ROWS, TARGETS, label_smoothing=1.0),
    "reduction is 'max'; it may be sum, mean, none": lambda: kernels.cross_entropy(ROWS, TARGETS, reduction="max"),
    "in_place is True, which the torch backend does not have": lambda: kernels.cross_entropy(
        ROWS, TARGETS, in_place=True, backend="torch"
    ),
    r"hidden has shape \(\); it has to be \(..., width\)": lambda: kernels.linear_cross_entropy(
        torch.tensor(1.0), ROWS, TARGETS
    ),
    "reduction is 'max'": lambda: kernels.linear_cross_entropy(ROWS, ROWS, TARGETS, reduction="max"),
    r"weight has shape \(3, 7\); it has to be \(vocabulary, 8\)": lambda: kernels.linear_cross_entropy(
        ROWS, ROWS[:, 1:], TARGETS
    ),
    r"bias has shape \(4,\); it has to be \(3,\)": lambda: kernels.linear_cross_entropy(
        ROWS, ROWS, TARGETS, torch.zeros(4)
    ),
    "weight is torch.float16 and hidden is torch.float32": lambda: kernels.linear_cross_entropy(
        ROWS, ROWS.half(), TARGETS
    ),
    "chunk_rows is 0; it may be 1 or more": lambda: kernels.linear_cross_entropy(ROWS, ROWS, TARGETS, chunk_rows=0),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named_before_any_launch(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
