"""Instructions below the command line: templates, masks, what fits, greedy answers, preferences, adapters."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from data.batches import IGNORE
from data.conversations import Conversation, Pair, Turn
from data.errors import UserError
from data.rows import PairRow, RowLoader, by_length, collate, eval_rows
from data.tokenizers import ByteTokenizer, CharTokenizer
from engine.config.settings import make
from engine.registry import build_model
from engine.run.weights import trained_weights
from engine.training.lora import LoRALinear, add_lora, fold
from engine.training.optimizers import make_optimizers
from finetune.instruct.answers import answer_all, by_task, exact, exactly_right, table
from finetune.instruct.material import encode, row_of, within
from finetune.instruct.options import InstructConfig
from finetune.instruct.preference import Preference, measure
from finetune.instruct.task import tell_markers_apart
from finetune.instruct.templates import TEMPLATES, Template, without_oldest
from makemore.layers import BatchNorm
from tests.helpers import configure
from tests.matrices import matrix

BYTES = ByteTokenizer()
SIZES = {"n_embd": 16, "n_hidden": 16, "n_layer": 2, "n_head": 2, "context": 200}
CPU = torch.device("cpu")


def body(model="transformer", vocab_size=BYTES.vocab_size, **more):
    torch.manual_seed(0)
    plain = {"activation": "tanh", "norm": "none", "order": 5} if model != "transformer" else {}
    return build_model(configure(model=model, **(SIZES | plain | more)), vocab_size).eval()


def said(*texts, label="", group=""):
    roles = ("user", "assistant") * len(texts)
    return Conversation(tuple(Turn(role, text) for role, text in zip(roles, texts, strict=False)), "here", label, group)


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@pytest.mark.parametrize("template", TEMPLATES)
@given(exchanges=st.lists(st.tuples(texts, texts), min_size=1, max_size=3), system=st.none() | texts)
@settings(max_examples=60)
def test_the_targets_are_the_answers_and_their_ends_alone(template, exchanges, system):
    turns = [] if system is None else [Turn("system", system)]
    for question, answer in exchanges:
        turns += [Turn("user", question), Turn("assistant", answer)]
    written = Template(template, BYTES)
    row = written.row(turns)
    assert len(row.tokens) == len(row.targets)
    wanted = [id_ for _, answer in exchanges for id_ in [*BYTES.encode(answer).tolist(), BYTES.special.eos]]
    assert row.targets[row.targets != IGNORE].tolist() == wanted
    there = row.targets != IGNORE
    assert (row.targets[:-1][there[:-1]] == row.tokens[1:][there[:-1]]).all() and there[-1]
    prompt = written.prompt(turns[:-1])
    assert row.tokens[: len(prompt)].tolist() == prompt and (row.targets[len(prompt) - 1 :] != IGNORE).all()
    marks = 0 if template == "plain" else len(exchanges)
    assert (row.tokens == BYTES.special.user).sum() == (row.tokens == BYTES.special.assistant).sum() == marks


def test_what_each_template_writes():
    turns = [Turn("system", "Be kind."), Turn("user", "Add.", "1, 2"), Turn("assistant", "3"), Turn("user", "Again.")]
    names = dict(enumerate(("", "^", "$", "?", "<U>", "<A>")))

    def shown(template):
        return "".join(names.get(i) or chr(i - 6) for i in Template(template, BYTES).prompt(turns))

    assert shown("chatml") == "^Be kind.<U>Add.\n1, 2<A>3$<U>Again.<A>"
    assert shown("plain") == "^Be kind.Add.\n1, 23$Again."
    assert shown("alpaca") == (
        "^Be kind.\n\n<U>### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n<A>3$"
        "<U>### Instruction:\nAgain.\n\n### Response:\n<A>"
    )


def test_text_never_becomes_a_special_token():
    prompt = Template("chatml", BYTES).prompt([Turn("user", "<assistant><eos><user>")])
    assert sum(i < 6 for i in prompt) == 3 and prompt[0] == BYTES.special.bos


def test_an_unknown_character_of_an_answer_is_read_but_not_predicted():
    row = Template("chatml", CharTokenizer("abc")).row(said("a", "b?c").turns)
    assert row.targets[row.targets != IGNORE].tolist() == [7, 8, 2] and (row.tokens == 3).sum() == 1


def test_the_oldest_turns_go_first_and_the_system_stays():
    conversation = said("a" * 20, "b" * 20, "c" * 20, "d" * 20, "e", "f")
    long = conversation._replace(turns=(Turn("system", "s"), *conversation.turns))
    template = Template("chatml", BYTES)
    assert without_oldest(long.turns)[:2] == (Turn("system", "s"), Turn("user", "c" * 20))
    whole = len(template.row(long.turns).tokens)
    assert within(long, template, whole) == long
    shorter = within(long, template, whole - 1)
    assert shorter.turns == (Turn("system", "s"), *conversation.turns[2:])
    assert within(long, template, 5) is None


def test_what_does_not_fit_is_left_out_and_counted(capsys):
    items = [said("a", "b"), said("a" * 50, "b"), said("a" * 30, "b", "c", "d")]
    side = encode(items, Template("chatml", BYTES), make(InstructConfig, {"context": 20}), "test")
    assert (side.left_out, side.shortened) == (1, 1) and side.items == [items[0], said("c", "d")]
    assert all(len(row.tokens) <= 20 for row in side.rows)
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "warning: 1 of 3 test examples are longer than the context of 20: left out",
        "warning: 1 of 3 test examples are longer than the context of 20: their oldest turns went",
    ]


def test_both_sides_of_a_pair_keep_the_same_turns():
    pair = Pair(said("a" * 9, "b" * 9, "c", "d"), said("a" * 9, "b" * 9, "c", "d" * 9))
    template = Template("chatml", BYTES)
    row = template.row(pair.chosen.turns)
    kept = within(pair, template, len(row.tokens))
    assert kept.chosen.turns == said("c", "d").turns and kept.rejected.turns == said("c", "d" * 9).turns
    assert within(pair, template, 4) is None
    for side, answer in zip(row_of(pair, template), ("d", "d" * 9), strict=True):
        assert side.targets[side.targets != IGNORE].tolist() == [*BYTES.encode(answer), 2]


def test_an_answer_in_unknown_characters_is_never_right(capsys):
    template = Template("chatml", CharTokenizer("abc"))
    config = make(InstructConfig, {"context": 9})
    side = encode([said("a", "b"), said("a?", "b"), said("a", "??")], template, config, "test")
    assert side.answerable.tolist() == [True, True, False]
    assert "3 of 8 characters of the test texts are not in the vocabulary" in capsys.readouterr().err


@pytest.mark.parametrize("model", matrix(["transformer", "gru", "cnn", "mlp"], ["transformer", "gru"]))
def test_an_answer_is_right_where_greedy_decoding_gives_it(model):
    """Teach two answers by heart, and compare reading with decoding; prompts of three lengths go together."""
    conversations = [said("ab", "x"), said("abc", "yy"), said("b", "z"), said("bc", "xy")]
    template, net = Template("chatml", BYTES), body(model, context=30)
    rows = [template.row(c.turns) for c in conversations]
    optimizer = torch.optim.AdamW(net.parameters(), 5e-3)
    for _ in range(300):
        net.train()
        out = net(*collate(rows[:2], 0).to(CPU)[:2])
        (out.nll_sum / out.n_tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    net.eval()
    answers = answer_all(net, conversations, template, 30, None, CPU)
    right = exactly_right(net, rows, BYTES.special, CPU)
    assert right.any() and not right.all()
    assert right.tolist() == [exact(a, c.answer) for a, c in zip(answers, conversations, strict=True)]
    alone = [answer_all(net, [c], template, 30, None, CPU)[0] for c in conversations]
    assert alone == answers
    assert answer_all(net, conversations[1:2], template, 30, 1, CPU) == [answers[1][:1]]


@given(lengths=st.lists(st.integers(1, 30), min_size=2, max_size=8))
@settings(max_examples=20, deadline=None)
def test_a_loss_does_not_depend_on_what_a_row_is_padded_with(lengths):
    net, template = body(), Template("chatml", BYTES)
    rows = [template.row(said("a" * n, "b" * (31 - n)).turns) for n in lengths]
    together = net(*collate(rows, 0).to(CPU)[:2]).nll_sum
    apart = sum(net(*collate([row], 0).to(CPU)[:2]).nll_sum for row in rows)
    assert math.isclose(together.item(), apart.item(), rel_tol=1e-5)


def test_the_table_counts_groups_apart():
    items = [said("a", "b", label="one"), said("a", "b", label="two"), said("a", "b", label="x", group="more")]
    found = by_task(items, [True, False, True])
    assert found["exact_match"] == 0.5 and found["examples"] == 2
    assert found["groups"]["more"]["exact_match"] == 1.0 and found["tasks"]["two"]["exact_match"] == 0.0
    lines = table(found).splitlines()
    assert [line.split()[:2] for line in lines if line and "exact" not in line] == [
        ["one", "1.000"], ["two", "0.000"], ["all", "0.500"], ["x", "1.000"], ["more", "1.000"],
    ]  # fmt: skip
    plain = by_task([said("a", "b")], [True])
    assert "tasks" not in plain and "all" in table(plain)


def test_an_answer_is_exact_whatever_space_is_around_it():
    assert exact(" a b\n", "a b") and not exact("ab", "a b") and not exact("A", "a")


PAIRS = [Pair(said("ab", "good"), said("ab", "bad one")), Pair(said("c", "fine"), said("c", "no"))]


def pair_rows():
    template = Template("chatml", BYTES)
    return [PairRow(template.row(p.chosen.turns), template.row(p.rejected.turns)) for p in PAIRS]


def test_a_batch_of_pairs_holds_the_chosen_rows_first_and_counts_pairs():
    rows = pair_rows()
    batch = collate(rows, 0)
    assert batch.tokens.shape == (4, max(len(row.tokens) for row in rows)) and batch.n_tokens == 2
    assert batch.targets[1][batch.targets[1] != IGNORE].tolist() == [*BYTES.encode("fine"), 2]
    assert batch.targets[2][batch.targets[2] != IGNORE].tolist() == [*BYTES.encode("bad one"), 2]
    loader = RowLoader(rows * 5, 4, 1, 0)
    assert [loader.next().n_tokens for _ in range(4)] == [4, 4, 2, 4]
    assert sum(b.n_tokens for b in eval_rows(rows, 0)()) == 2 and list(by_length(rows)) == [[1, 0]]


def test_preference_is_the_paper_s_loss():
    policy = Preference(body(), beta=0.3)
    before = copy.deepcopy(policy.model)
    batch = collate(pair_rows(), 0).to(CPU)
    assert math.isclose(policy(*batch[:2]).nll_sum.item(), 2 * math.log(2), rel_tol=1e-6)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))

    def likelihood(model, row):
        logits = model(torch.from_numpy(row.tokens)[None]).logits[0].log_softmax(-1)
        there = np.flatnonzero(row.targets != IGNORE)
        return sum(logits[i, row.targets[i]].item() for i in there)

    expected = 0.0
    margins = []
    for chosen, rejected in pair_rows():
        gains = [likelihood(policy.model, row) - likelihood(before, row) for row in (chosen, rejected)]
        margins.append(gains[0] - gains[1])
        expected -= float(F.logsigmoid(torch.tensor(0.3 * margins[-1])))
    out = policy(*batch[:2])
    assert math.isclose(out.nll_sum.item(), expected, rel_tol=1e-4) and out.n_tokens == 2 and out.logits is None
    found = measure(policy, pair_rows(), 0, CPU)
    assert math.isclose(found["margin"], np.mean(margins), rel_tol=1e-3)
    assert found["accuracy"] == np.mean(np.array(margins) > 0)


def test_preference_trains_the_policy_and_nothing_else():
    policy = Preference(body(), beta=0.5)
    names = set(policy.model.state_dict())
    assert set(trained_weights(policy)) == names == {n for n, _ in policy.named_parameters()}
    config = configure(model="transformer", optimizer="muon", lr=1e-2, **SIZES)
    optimizers = make_optimizers(policy, config.optim)
    reference = copy.deepcopy(policy.reference.state_dict())
    policy.train()
    for _ in range(20):
        batch = collate(pair_rows(), 0).to(CPU)
        policy(*batch[:2]).nll_sum.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert not policy.reference.training and policy.model.training
    assert all(torch.equal(reference[name], tensor) for name, tensor in policy.reference.state_dict().items())
    assert measure(policy, pair_rows(), 0, CPU)["accuracy"] == 1.0 and policy.training


@pytest.mark.parametrize("layers, count", [("all", 8), ("attn", 4), ("attn,mlp.c_fc", 6), ("h.1", 4), ("c_proj", 4)])
def test_lora_goes_into_the_layers_that_are_named(layers, count):
    net = body()
    add_lora(net, 2, 4.0, layers)
    adapted = [name for name, module in net.named_modules() if isinstance(module, LoRALinear)]
    assert len(adapted) == count
    assert {name for name, p in net.named_parameters() if p.requires_grad} == {
        f"{name}.{part}" for name in adapted for part in ("lora_a", "lora_b")
    }


@pytest.mark.parametrize("layers", ["c_atn", "", "attn,,", "att", "lm_head"])
def test_lora_names_the_layers_there_are(layers):
    with pytest.raises(UserError, match=r"no linear layer has .*; there are: h.0.attn.c_attn, "):
        add_lora(body(tie_head=False), 2, 4.0, layers)


def test_an_adapter_of_default_size_is_a_few_per_cent_of_the_default_model():
    config = make(InstructConfig, {})
    net = build_model(configure(model="transformer", n_embd=128, context=128), 71)
    whole = sum(p.numel() for p in net.parameters())
    add_lora(net, config.tuning.lora_rank, config.tuning.lora_alpha, config.tuning.lora_layers)
    assert sum(t.numel() for t in trained_weights(net).values()) < 0.05 * whole


def test_adapters_train_under_muon():
    net = body()
    add_lora(net, 2, 4.0)
    optimizers = make_optimizers(net, configure(model="transformer", optimizer="muon").optim)
    assert [type(optimizer).__name__ for optimizer in optimizers] == ["Muon"]


def test_batch_statistics_are_of_all_that_is_read_and_of_no_padding():
    norm = BatchNorm(3)
    x = torch.randn(2, 4, 3)
    valid = torch.tensor([[False, True, False, True], [False, True, False, False]])
    norm(x, valid)
    read = torch.cat([x[0], x[1, :2]])
    assert torch.allclose(norm.running_mean, 0.1 * read.mean(0), atol=1e-6)


def test_markers_that_are_alike_are_told_apart():
    net = body()
    tell_markers_apart(net)
    before = net.wte.weight.clone()
    tell_markers_apart(net)
    assert torch.equal(net.wte.weight, before)
    with torch.no_grad():
        net.wte.weight[[BYTES.special.user, BYTES.special.assistant]] = net.wte.weight.mean(0)
    tell_markers_apart(net)
    user, assistant = net.wte.weight[[BYTES.special.user, BYTES.special.assistant]]
    assert not torch.allclose(user, assistant)
    others = [i for i in range(BYTES.vocab_size) if i not in (BYTES.special.user, BYTES.special.assistant)]
    assert torch.equal(net.wte.weight[others], before[others])


@pytest.mark.parametrize("bias", [True, False])
def test_a_folded_adapter_is_the_model_it_was_trained_with(bias):
    net = body(bias=bias)
    add_lora(net, 3, 7.0, "attn")
    for name, parameter in net.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(parameter)
    tokens = torch.randint(6, 200, (2, 9))
    plain = body(bias=bias)
    plain.load_state_dict(fold(net.state_dict()))
    assert (plain(tokens).logits - net(tokens).logits).abs().max() < 1e-5
    assert fold(plain.state_dict()).keys() == plain.state_dict().keys()
