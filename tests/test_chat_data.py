"""Conversations and preferences as they are published: every shape, what it means, and what a bad example costs."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.bad_examples import Notes
from data.batches import IGNORE
from data.conversation_files import read_conversations, read_pairs
from data.conversation_shapes import Columns, read_conversation
from data.conversations import Pair, Turn, drop_duplicates
from data.errors import UserError
from data.json_files import content_key
from data.preference_shapes import read_pair
from data.tokenizers import ByteTokenizer
from finetune.instruct.material import _key
from finetune.instruct.templates import Template
from tests.conftest import NAMES
from tests.helpers import ok, refused, summary, warnings_of

MODULE = "-m finetune.instruct"
QUICK = ("--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--steps", 2, "--eval-interval", 2, "--batch-size", 8)


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


def said(*pairs):
    """What ShareGPT calls messages."""
    return [{"from": who, "value": text} for who, text in pairs]


CALL = {"id": "1", "type": "function", "function": {"name": "fly", "arguments": '{"up": 3}'}}
EXCHANGE = [("user", "hi"), ("assistant", "hello")]
SHAPES = {
    "ShareGPT": (
        {"id": "7", "conversations": said(("system", "Be kind."), ("human", "hi"), ("gpt", "hello"))},
        [("system", "Be kind."), *EXCHANGE],
    ),
    "ShareGPT and a system": ({"conversations": said(("human", "hi"), ("gpt", "hello")), "system": "Be kind."},
                              [("system", "Be kind."), *EXCHANGE]),
    "ShareGPT of a cut conversation": (
        {"conversations": said(("gpt", "I go on."), ("human", "hi"), ("gpt", "hello"))},
        [("user", ""), ("assistant", "I go on."), *EXCHANGE],
    ),
    "calls in ShareGPT": (
        {
            "conversations": said(
                ("human", "up"), ("function_call", '{"name": "fly"}'), ("observation", "ok"), ("gpt", "up.")
            )
        },
        [("user", "up"), ("assistant", '{"name": "fly"}'), ("user", "ok"), ("assistant", "up.")],
    ),
    "messages": ({"messages": [user("hi"), assistant("hello")]}, EXCHANGE),
    "developer": ({"messages": [{"role": "developer", "content": "x"}, user("hi"), assistant("hello")]},
                  [("system", "x"), *EXCHANGE]),
    "parts": (
        {"messages": [user([{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]),
                      assistant([{"type": "text", "value": "hello"}])]},
        EXCHANGE,
    ),
    "calls": (
        {"messages": [user("up"), assistant(None, tool_calls=[CALL, CALL]), {"role": "tool", "content": "a"},
                      {"role": "tool", "content": "b"}, user("so?"), assistant("up."), user("down"),
                      {"role": "assistant", "tool_calls": [CALL]}]},
        [("user", "up"), ("assistant", '{"name": "fly", "arguments": {"up": 3}}\n' * 2), ("user", "a\nb\nso?"),
         ("assistant", "up."), ("user", "down"), ("assistant", '{"name": "fly", "arguments": {"up": 3}}')],
    ),
    "an older call beside a text": (
        {"messages": [user("up"), assistant("So.", function_call={"name": "fly", "arguments": {"up": "é"}})]},
        [("user", "up"), ("assistant", 'So.\n{"name": "fly", "arguments": {"up": "é"}}')],
    ),
    "system then assistant": ({"messages": [system("Greet."), assistant("hello")]},
                              [("system", "Greet."), ("user", ""), ("assistant", "hello")]),
    "a bare list": ([user("hi"), assistant("hello")], EXCHANGE),
    "the user's turn at the end": ({"messages": [user("hi"), assistant("hello"), user("and")]}, EXCHANGE),
    "Alpaca": ({"instruction": "hi", "input": "", "output": "hello", "text": "all of it"}, EXCHANGE),
    "Alpaca with a past": (
        {"instruction": "hi", "output": "hello", "system": "Be kind.", "history": [["a", "b"], ["c", "d"]]},
        [("system", "Be kind."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), *EXCHANGE],
    ),
    "Dolly": ({"instruction": "Who?", "context": "Ada and Bo.", "response": "Ada", "category": "qa"},
              [("user", "Who?\nAda and Bo."), ("assistant", "Ada")]),
    "question and answer": ({"question": "hi", "answer": "hello"}, EXCHANGE),
    "Orca": ({"system_prompt": "Be kind.", "question": "hi", "response": "hello"}, [("system", "Be kind."), *EXCHANGE]),
    "query and response": ({"query": "hi", "response": "hello"}, EXCHANGE),
    "prompt and completion": ({"prompt": "hi", "completion": "hello"}, EXCHANGE),
    "TRL": ({"prompt": [system("Be kind."), user("hi")], "completion": [assistant("hello")]},
            [("system", "Be kind."), *EXCHANGE]),
}  # fmt: skip


def written(tmp_path, items, name="chat.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(map(json.dumps, items)) if name.endswith("l") else json.dumps(items))
    return str(path)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["chat.json", "chat.jsonl"])
def test_every_shape_of_conversations(tmp_path, shape, name):
    item, wanted = SHAPES[shape]
    _, (found,) = read_conversations(written(tmp_path, [item], name))
    assert [(turn.role, turn.whole) for turn in found.turns] == [(role, text.strip("\n")) for role, text in wanted]
    assert all(turn.learned for turn in found.turns)


def test_only_what_is_not_read_is_warned_of(tmp_path, capsys):
    read_conversations(written(tmp_path, [item for item, _ in SHAPES.values()]))
    assert "is not read" not in capsys.readouterr().err


def test_a_command_reads_every_shape_in_one_file(cli, tmp_path):
    """Through all of it: rows, training, answers, and the run's own test examples again."""
    items = [item for item, _ in SHAPES.values()]
    items += [{"question": name, "answer": name[0]} for name in NAMES]
    done = ok(cli(MODULE, "--data", written(tmp_path, items), *QUICK, "--max-answer", 3, "--out", "run"))
    assert warnings_of(done)[0].startswith("warning: 1 of ") and "end with a question: it went" in done.err
    ok(cli(MODULE, "--eval-only", "--out", "run"))
    ok(cli(MODULE, "--resume", "--out", "run", "--steps", 4))


def test_any_other_keys_are_named_by_flags(cli, tmp_path):
    items = [{"ask": name, "say": name[0], "who": "a bard" if n % 2 else None} for n, name in enumerate(NAMES)]
    data = written(tmp_path, items)
    flags = ("--prompt-column", "ask", "--answer-column", "say", "--system-column", "who")
    _, found = read_conversations(data, columns=Columns("ask", "say", "who"))
    assert found[0].turns == (Turn("user", NAMES[0]), Turn("assistant", NAMES[0][0]))
    assert found[1].turns[0] == Turn("system", "a bard") and len(found[1].turns) == 3
    refused(cli(MODULE, "--data", data), "it has: ask, say, who. Name yours with --prompt-column and --answer-column")
    refused(cli(MODULE, "--data", data, *flags[:3], "sya"), "has no key 'sya'", "Did you mean 'say'?")
    refused(cli(MODULE, "--data", data, *flags[:4], "--system-column", "x"), "has no key 'x'; it has: ask")
    ok(cli(MODULE, "--data", data, *flags, *QUICK, "--max-answer", 2, "--out", "run"))
    told = ok(cli(MODULE, "--eval-only", "--out", "run", "--data", data, *flags))
    assert json.loads(told.out)["examples"] == len(NAMES)
    refused(cli(MODULE, *flags[:2]), "--prompt-column means nothing to the bundled strings")
    refused(cli(MODULE, "--strict"), "--strict means nothing to the bundled strings")


@pytest.mark.parametrize("key", ["weight", "loss_weight", "train"])
@pytest.mark.parametrize("value", [0, 0.0, False])
def test_an_answer_of_no_weight_is_read_and_not_learned(tmp_path, key, value):
    bad, good = assistant("BAD", **{key: value}), assistant("good", **{key: 1})
    items = [{"messages": [user("q1"), bad, user("q2"), good, user("q3"), bad]}, {"messages": [user("q1"), bad]}]
    _, (found,) = read_conversations(written(tmp_path, items))
    assert [turn.text for turn in found.turns] == ["q1", "BAD", "q2", "good"]
    tokenizer = ByteTokenizer()
    for prompt_weight in (0.0, 0.5):
        row = Template("chatml", tokenizer).row(found.turns, prompt_weight=prompt_weight)
        learned = tokenizer.decode(row.targets[(row.targets != IGNORE) & (row.targets > 5)].tolist())
        assert learned == ("q1q2good" if prompt_weight else "good")
        assert (row.targets == tokenizer.special.eos).sum() == 1
        assert "BAD" in tokenizer.decode(row.tokens.tolist())
    plain = found._replace(turns=tuple(turn._replace(learned=True) for turn in found.turns))
    assert _key([found]) != _key([plain]) and len(drop_duplicates([found, plain])) == 2


def test_the_key_of_examples_is_that_of_older_runs(tmp_path):
    _, found = read_conversations(written(tmp_path, [{"instruction": "a", "input": "b", "output": "c", "task": "t"}]))
    assert _key(found) == content_key([["t", [["user", "a", "b"], ["assistant", "c", ""]]]])


def test_the_answers_of_a_prompt_are_given(tmp_path):
    prompt = [user("q1"), assistant("a1"), user("q2")]
    _, (found,) = read_conversations(written(tmp_path, [{"prompt": prompt, "completion": [assistant("a2")]}]))
    assert [turn.learned for turn in found.turns] == [True, False, True, True]


def test_what_is_not_read_and_might_matter_is_counted_once(tmp_path, capsys):
    picture = user([{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "hi"}])
    items = [
        {"messages": [picture, assistant("a")], "tools": [{"name": "fly"}], "id": 3, "images": []},
        {"messages": [picture, assistant("b"), picture, assistant("c")]},
        {"prompt": "a", "completion": "b", "context": "x", "source": "y"},
        {"conversations": said(("human", "hi"), ("gpt", "a")), "tools": "[]"},
    ]
    path = written(tmp_path, items)
    assert len(read_conversations(path)[1]) == 4
    assert capsys.readouterr().err == (
        f"warning: what is not read may change what examples of {path} mean: context (1), image_url (2), tools (2)\n"
    )


def test_answers_that_were_judged_bad_are_refused_at_once(cli, tmp_path):
    items = [{"messages": [user(name), assistant("a")], "label": n != 30} for n, name in enumerate(NAMES)]
    refused(cli(MODULE, "--data", written(tmp_path, items)), "line 31 has 'label': false", "KTO", "for --dpo")


GOOD = [{"prompt": name, "completion": name[0]} for name in NAMES]


def test_a_bad_example_costs_that_example(cli, tmp_path):
    lines = [*map(json.dumps, GOOD), '{"prompt": "cut off', '{"prompt": "a", "completion": ""}',
             '{"prompt": "a", "completion": 3}', r'{"prompt": "a", "completion": "\ud83d"}']  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    done = ok(cli(MODULE, "--data", "a.jsonl", *QUICK, "--max-answer", 2, "--out", "run"))
    n = len(GOOD)
    told = done.err.splitlines()
    assert f"warning: 4 of {n + 4} examples of a.jsonl cannot be read: left out (--strict refuses them)" in told
    named = [line for line in told if line.startswith("  a.jsonl line")]
    assert [line.split()[2].strip(":") for line in named] == [str(n + 1), str(n + 2), str(n + 3)]
    assert "is not JSON" in named[0] and named[1].endswith("'completion' is empty") and "no text, but a int" in named[2]
    assert sum(summary()["left_out"].values()) == 0
    refused(cli(MODULE, "--data", "a.jsonl", "--strict"), f"a.jsonl line {n + 1} is not JSON")


def test_more_than_a_tenth_are_too_many(tmp_path, capsys):
    bad = {"prompt": "a"}
    assert len(read_conversations(written(tmp_path, [*GOOD[:9], bad]))[1]) == 9
    assert "1 of 10 examples" in capsys.readouterr().err
    with pytest.raises(UserError, match="2 of 19 examples .*, more than one in 10:\n  .* line 18 has no"):
        read_conversations(written(tmp_path, [*GOOD[:17], bad, bad]))
    nothing = {"messages": [user("a"), assistant("b", weight=0)]}
    assert len(read_conversations(written(tmp_path, [*GOOD[:2], *[nothing] * 8]))[1]) == 2
    assert "8 of 10 examples" in capsys.readouterr().err
    with pytest.raises(UserError, match="none of 1 examples .* teaches anything"):
        read_conversations(written(tmp_path, [nothing]))
    with pytest.raises(UserError, match="line 3 has no answer that is to be learned"):
        read_conversations(written(tmp_path, [*GOOD[:2], nothing]), strict=True)


SUM = [user("2+2?"), assistant("4"), user("And 3+3?")]
SPOKEN = "\n\nHuman: 2+2?\n\nAssistant: 4\n\nHuman: And 3+3?\n\nAssistant: "
PAIRS = {
    "texts": ({"prompt": "And 3+3?", "chosen": "6", "rejected": "7"}, 1),
    "UltraFeedback": (
        {"prompt": "And 3+3?", "chosen": [*SUM, assistant("6")], "rejected": [*SUM, assistant("7")], "messages": "x"},
        3,
    ),
    "the first question is the prompt": (
        {"prompt": "2+2?", "chosen": [*SUM, assistant("6")], "rejected": [*SUM, assistant("7")]},
        3,
    ),
    "a list and answers": ({"prompt": SUM, "chosen": [assistant("6")], "rejected": "7"}, 3),
    "implicit, as messages": ({"chosen": [*SUM, assistant("6")], "rejected": [*SUM, assistant("7")]}, 3),
    "hh-rlhf": ({"chosen": SPOKEN + "6", "rejected": SPOKEN + "7"}, 3),
    "LLaMA-Factory": ({"chosen_messages": [*SUM, assistant("6")], "rejected_messages": [*SUM, assistant("7")]}, 3),
    "Alpaca": ({"instruction": "And", "input": "3+3?", "output": "x", "chosen": "6", "rejected": "7"}, 1),
    "Orca": ({"system": "Be kind.", "question": "And 3+3?", "chosen": "6", "rejected": "7"}, 2),
    "ShareGPT": (
        {
            "conversations": said(("human", "2+2?"), ("gpt", "4"), ("human", "And 3+3?")),
            "chosen": said(("gpt", "6"))[0],
            "rejected": said(("gpt", "7"))[0],
        },
        3,
    ),
    "OpenAI": (
        {"input": {"messages": SUM}, "preferred_output": [assistant("6")], "non_preferred_output": [assistant("7")]},
        3,
    ),
}


@pytest.mark.parametrize("shape", [name for name, (item, _) in PAIRS.items() if not {"output", "messages"} & {*item}])
def test_pairs_without_dpo_are_told_so(tmp_path, shape):
    with pytest.raises(UserError, match="chat.jsonl line 1 is a pair of a chosen and a rejected answer; --dpo"):
        read_conversations(written(tmp_path, [PAIRS[shape][0]]))


@pytest.mark.parametrize("shape", PAIRS)
def test_every_shape_of_preferences(tmp_path, shape):
    item, turns = PAIRS[shape]
    _, (found,) = read_pairs(written(tmp_path, [item]))
    assert (found.chosen.answer, found.rejected.answer) == ("6", "7")
    assert found.chosen.prompt == found.rejected.prompt and len(found.chosen.prompt) == turns
    assert " ".join(found.chosen.prompt[-1].whole.split()) == "And 3+3?"
    before = [(turn.role, turn.text) for turn in found.chosen.prompt[:-1]]
    assert before == {1: [], 2: [("system", "Be kind.")], 3: [("user", "2+2?"), ("assistant", "4")]}[turns]


def test_a_system_message_stands_before_whatever_the_prompt_is(tmp_path):
    sides = {"chosen": [*SUM, assistant("6")], "rejected": [*SUM, assistant("7")]}
    for more in ({}, {"prompt": "2+2?"}, {"prompt": "And 3+3?"}, {"prompt": SUM}):
        _, (found,) = read_pairs(written(tmp_path, [{"system": "Be kind."} | more | sides]))
        assert [turn.text for turn in found.rejected.turns] == ["Be kind.", "2+2?", "4", "And 3+3?", "7"], more


def test_a_pair_whose_answer_is_not_to_be_learned_teaches_nothing(tmp_path, capsys):
    items = [{"prompt": "a", "chosen": assistant("b", weight=weight), "rejected": "c"} for weight in (0, 1)]
    assert len(read_pairs(written(tmp_path, items))[1]) == 1
    assert "line 1 has an answer that is not to be learned" in capsys.readouterr().err


def test_pairs_of_equal_or_empty_sides_are_left_out_and_counted(cli, tmp_path):
    ok(cli(MODULE, "--data", written(tmp_path, GOOD), *QUICK, "--tokenizer", "byte", "--context", 60, "--out", "run"))
    items = [{"prompt": name, "chosen": name[0], "rejected": "no"} for name in NAMES]
    items += [{"prompt": "a", "chosen": "b", "rejected": "b"}, {"chosen": SPOKEN, "rejected": SPOKEN + "7"}]
    items += [{"prompt": "a", "chosen": "b", "rejected": ""}] * len(NAMES)
    data = written(tmp_path, [*items, {"prompt": "x", "chosen": [*SUM, assistant("6")], "rejected": "7"}], "p.jsonl")
    flags = ("--dpo", "--init", "run", "--steps", 2, "--eval-interval", 2, "--max-answer", 2)
    done = ok(cli(MODULE, "--data", data, *flags, "--out", "liked"))
    n = len(NAMES)
    assert f"{n + 2} of {2 * n + 3} examples of {data} teach nothing: left out" in done.err
    assert "'chosen' and 'rejected' are the same" in done.err and "'chosen': 'Assistant' is empty" in done.err
    assert f"1 of {2 * n + 3} examples of {data} cannot be read" in done.err and "not what comes before" in done.err
    refused(cli(MODULE, "--data", data, *flags, "--strict"), f"line {n + 1}: 'chosen' and 'rejected' are the same")
    refused(cli(MODULE, "--data", data, *flags, "--answer-column", "x"), "--answer-column means nothing to --dpo")
    asked = written(tmp_path, [{"ask": name, "chosen": "a", "rejected": "b"} for name in NAMES], "q.jsonl")
    ok(cli(MODULE, "--data", asked, *flags, "--prompt-column", "ask", "--out", "asked"))


KEYS = (
    "messages", "conversations", "role", "content", "from", "value", "type", "text", "tool_calls", "function", "name",
    "arguments", "weight", "train", "instruction", "input", "output", "prompt", "completion", "question", "answer",
    "context", "system", "history", "chosen", "rejected", "preferred_output", "non_preferred_output", "label", "tools",
)  # fmt: skip
SCALARS = st.sampled_from([None, True, False, 0, 1, 0.5, "", " ", "hi", "user", "assistant", "gpt", "system", "tool"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=30,
)


@given(item=st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=6) | VALUES)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_whatever_an_item_holds_is_read_or_refused_in_words(item):
    for read in (read_conversation, read_pair):
        with contextlib.suppress(UserError):
            found = read(item, "here", Notes(), Columns())
            for conversation in found if isinstance(found, Pair) else [found]:
                roles = [turn.role for turn in conversation.turns]
                spoken = roles[roles[0] == "system" :]
                assert spoken == ["user", "assistant"] * (len(spoken) // 2) and spoken
                assert all(isinstance(turn.whole, str) for turn in conversation.turns)
                assert conversation.answer and conversation.turns[-1].learned
