"""How a model begins: its first predictions, how weights are drawn, and sizes that do not go together."""

import math

import pytest
import torch

from data.errors import UserError
from data.tokenizers import NEVER_PREDICTED
from engine.registry import build_model
from tests.helpers import configure
from tests.variants import (
    SMALL,
    VARIANTS,
    VOCAB,
    some_tokens,
)  # fmt: skip


@pytest.mark.parametrize("name", ["bigram", "mlp", "cnn", "gru fused", "transformer untied"])
def test_a_fresh_model_predicts_every_character_about_equally_and_no_special(name):
    torch.manual_seed(0)
    model = build_model(configure(**{**SMALL, "model": name.split()[0], "norm": "layer", **VARIANTS[name]}), 40)
    p = model.eval()(some_tokens(8)).logits.softmax(-1)
    assert p[..., list(NEVER_PREDICTED)].sum(-1).max() < 0.01
    loss = -p[..., 6:].log().mean()
    assert abs(loss.item() - math.log(35)) < 0.15


@pytest.mark.parametrize("model", ["mlp", "cnn", "rnn", "lstm", "gru", "transformer"])
@pytest.mark.parametrize("how", ["normal", "xavier", "kaiming", "orthogonal"])
def test_an_initialisation_draws_every_matrix_as_it_says(model, how):
    sizes = {"n_embd": 64, "n_hidden": 64, "activation": "relu", "norm": "none", "tie_head": False}
    torch.manual_seed(0)
    made = build_model(configure(**{**SMALL, **sizes, "model": model, "weight_init": how}), 100)
    for name, weight in made.named_parameters():
        if weight.ndim < 2 or name.startswith(("wte", "wpe")) or (how == "normal" and name.endswith("c_proj.weight")):
            continue
        rows, columns = weight.shape
        gain = 5 / 3 if model in ("lstm", "gru") else math.sqrt(2)  # theirs is tanh whatever is asked for
        wanted = {"normal": 0.02, "xavier": math.sqrt(2 / (rows + columns)), "kaiming": gain / math.sqrt(columns)}
        if how == "orthogonal":
            gram = weight @ weight.T if rows <= columns else weight.T @ weight
            assert torch.allclose(gram, torch.eye(min(rows, columns)), atol=1e-4), name
        else:
            assert weight.std().item() == pytest.approx(wanted[how], rel=0.1), name


@pytest.mark.parametrize("tie_head", [True, False])
@pytest.mark.parametrize("how", ["default", "torch", "normal", "xavier", "kaiming", "orthogonal"])
def test_no_initialisation_of_the_transformer_starts_far_from_even_odds(how, tie_head):
    sizes = {"context": 32, "n_layer": 4, "n_head": 4, "n_embd": 64, "tie_head": tie_head}
    torch.manual_seed(0)
    model = build_model(configure(model="transformer", weight_init=how, **sizes), 60)
    tokens = torch.randint(6, 60, (16, 33))
    assert model(tokens[:, :-1], tokens[:, 1:]).nll_sum.item() / (16 * 32) < math.log(55) + 1


WRONG = {
    "heads": ({"model": "transformer", "n_embd": 15}, "n_embd 15 is not divisible by n_head 4"),
    "kv heads": ({"model": "transformer", "n_kv_head": 3}, "n_head 4 is not divisible by n_kv_head 3"),
    "rope pairs": ({"model": "transformer", "n_embd": 12, "positions": "rope"}, "has to be even"),
    "swiglu": ({"model": "mlp", "activation": "swiglu"}, "swiglu is the Transformer's"),
    "fused gelu": ({"model": "rnn", "activation": "gelu"}, "knows tanh and relu, not gelu; use --cells written"),
}


@pytest.mark.parametrize("case", WRONG)
def test_sizes_and_options_that_do_not_go_together_are_refused(case):
    options, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        build_model(configure(**SMALL | options), VOCAB)
