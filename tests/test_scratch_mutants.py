"""The comparisons with torch find what goes wrong most often in gradients by hand: each bug planted here fails one."""

from types import ModuleType

import numpy as np
import pytest
import torch

from makemore.scratch import functions, recurrent, soft_targets
from tests.test_scratch import CASES, close, derivatives, test_batch_norms_statistics_are_those_that_torch_keeps

# The module, its line, what becomes of it, and the case of tests/test_scratch.py that is to fail.
PLANTED = {
    "the sign of softmax's backward": (functions, "p * (dp - (dp * p)", "p * (dp + (dp * p)", "softmax"),
    "softmax's maximum over the wrong axis": (
        functions, "e = np.exp(x - x.max(-1, keepdims=True", "e = np.exp(x - x.max(0, keepdims=True", "softmax",
    ),
    "softmax less twice the target": (
        functions, "p[rows, targets] -= 1  #", "p[rows, targets] -= 2  #", "cross-entropy",
    ),
    "a mean over the wrong count": (functions, "count = max(1, len(logits))", "count = logits.size", "cross-entropy"),
    "a temperature that the derivative has lost": (
        soft_targets, "return temperature * (np.exp", "return (np.exp", "soft cross-entropy",
    ),
    "the unbiased variance in layer norm": (
        functions, "(((x - mean) ** 2).mean(-1, keepdims=True) + eps)",
        "(((x - mean) ** 2).sum(-1, keepdims=True) / (x.shape[-1] - 1) + eps)", "layer norm",
    ),
    "a mean that is a constant to the derivative": (
        functions, "dx = (dn - dn.mean(-1, keepdims=True) - ", "dx = (dn - ", "layer norm",
    ),
    "a token's derivatives, the last alone": (
        functions, "np.add.at(dW, flat, dy)", "dW[flat] = dy", "embedding of many rows",
    ),
    "a bias counted once a row": (
        functions, "None if b is None else dy.sum(0)", "None if b is None else dy.mean(0)", "linear",
    ),
    "an activation's slope at the wrong value": (
        functions, "lambda dy: dy * (1 - y * y)", "lambda dy: dy * (1 - x * x)", "tanh",
    ),
    "a convolution that looks ahead": (
        functions, "np.concatenate([np.zeros((B, before, n), x.dtype), x], 1)",
        "np.concatenate([x, np.zeros((B, before, n), x.dtype)], 1)", "causal convolution",
    ),
    "attention to the next token": (
        functions, "np.triu(np.ones((T, T), bool), 1)", "np.triu(np.ones((T, T), bool), 2)", "causal attention",
    ),
    "attention without its scale": (functions, "q.shape[3] ** -0.5", "1.0", "causal attention"),
    "keys' derivatives of the queries": (functions, "ds.swapaxes(-1, -2) @ q, ", "ds @ q, ", "causal attention"),
    "Cho's GRU, reset before the product": (recurrent, "n = np.tanh(nx + r * nh)", "n = np.tanh(nx + nh) * r", "gru"),
    "makemore's z": (recurrent, "hs[t + 1] = (1 - z) * n + z * hs[t]", "hs[t + 1] = z * n + (1 - z) * hs[t]", "gru"),
    "a gate's derivative forgotten": (recurrent, "dn = dh * (1 - z) * (1 - n * n)", "dn = dh * (1 - n * n)", "gru"),
    "the memory that forgets its derivative": (recurrent, "@ U, dmemory * f", "@ U, dmemory", "lstm"),
    "time that is not gone back through": (recurrent, "dh = dgates[t] @ U\n        dx", "pass\n        dx", "rnn"),
}  # fmt: skip


def mutant(module: ModuleType, line: str, becomes: str) -> ModuleType:
    """The module with one line changed."""
    with open(module.__file__ or "", encoding="utf-8") as file:
        source = file.read()
    assert line in source, f"{module.__name__} has no '{line}' any more"
    made = ModuleType("mutant")
    exec(compile(source.replace(line, becomes), "mutant", "exec"), made.__dict__)
    return made


def agrees(case: str, swapped: ModuleType | None, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the case gives torch's value and gradients, with the functions of `swapped` in place of the module's."""
    if swapped is not None:
        for name, value in vars(swapped).items():
            if callable(value) and getattr(value, "__module__", "") == "mutant":
                original = getattr(module, name)
                monkeypatch.setattr(original, "__code__", value.__code__)
    ours, theirs, arguments = CASES[case]
    leaves = [torch.tensor(x, requires_grad=True) for x in arguments]
    expected = theirs(*leaves)
    dy = np.random.default_rng(1).standard_normal(tuple(expected.shape))
    expected.backward(torch.tensor(dy))
    try:
        with np.errstate(all="ignore"):
            y, found = derivatives(ours, arguments, np.asarray(dy))
    except (ValueError, IndexError):
        return False
    wanted = [leaf.grad.numpy() for leaf in leaves]
    return close(np.asarray(y), expected.detach().numpy(), 1e-12) and all(
        close(a, b, 1e-12) for a, b in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug, monkeypatch):
    module, line, becomes, case = PLANTED[bug]
    assert agrees(case, None, module, monkeypatch)
    assert not agrees(case, mutant(module, line, becomes), module, monkeypatch)


def test_a_biased_running_variance_is_found(monkeypatch):
    changed = mutant(functions, "x.var(0, ddof=1)", "x.var(0)")
    monkeypatch.setattr(functions.statistics, "__code__", changed.statistics.__code__)
    with pytest.raises(AssertionError):
        test_batch_norms_statistics_are_those_that_torch_keeps()
