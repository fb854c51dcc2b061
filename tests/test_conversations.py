"""Conversations: every reader, what each refuses and how it says so, the split, and the generated tasks on strings."""

import json
import re
from string import ascii_lowercase, ascii_uppercase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.conversation_files import read_conversations, read_pairs
from data.conversations import Turn, drop_duplicates
from data.errors import UserError
from data.examples import SIDES, split_examples
from data.string_tasks import MAX_LENGTH, MIN_LENGTH, SEEN, TASKS, UNSEEN, side_of, string_tasks


def written(tmp_path, items, name="data.jsonl"):
    path = tmp_path / name
    lines = json.dumps(items) if name.lower().endswith(".json") else "\n".join(map(json.dumps, items)) + "\n"
    path.write_text(lines, "utf-8")
    return str(path)


ASK, SAY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
BYE, OTHER = {"role": "assistant", "content": "bye"}, {"role": "user", "content": "why"}
ALPACA = {"instruction": "Add.", "input": "1, 2", "output": "3"}


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data.JSON"])
def test_the_three_kinds_are_read_from_both_formats(tmp_path, name):
    system = {"role": "system", "content": "Be kind."}
    items = [
        ALPACA,
        {"instruction": "Say a.", "input": "", "output": "a", "task": "letters"},
        {"instruction": "Say b.", "output": "b"},
        {"prompt": "2+2=", "completion": " 4"},
        {"messages": [system, ASK, SAY, ASK, SAY]},
    ]
    short, found = read_conversations(written(tmp_path, items, name))
    assert short == "data" and len(found) == 5
    assert found[0].turns == (Turn("user", "Add.", "1, 2"), Turn("assistant", "3"))
    assert found[0].text == "Add.\n1, 2" and found[0].answer == "3"
    assert found[1].turns[0] == Turn("user", "Say a.") and found[1].label == "letters"
    assert found[3].turns[1].text == " 4"
    assert [turn.role for turn in found[4].turns] == ["system", "user", "assistant", "user", "assistant"]
    assert found[4].text == "hi" and len(found[4].prompt) == 4


def test_pairs_are_read_from_texts_and_from_messages(tmp_path):
    items = [
        {"prompt": "hi", "chosen": "hello", "rejected": "go"},
        {"prompt": [ASK, SAY, ASK], "chosen": [ASK, SAY], "rejected": [{"role": "assistant", "content": "no"}]},
    ]
    _, found = read_pairs(written(tmp_path, items))
    assert found[0].chosen.turns == (Turn("user", "hi"), Turn("assistant", "hello"))
    assert found[0].rejected.answer == "go" and found[0].text == "hi"
    assert found[1].chosen.answer == "hello" and found[1].rejected.answer == "no" and len(found[1].chosen.turns) == 4


REFUSED = {
    "no known key": ({"ask": "a", "say": "b"}, "none of 'messages', 'instruction' and 'output'"),
    "its keys": ({"ask": "a", "say": "b"}, "it has: ask, say. Name yours with --prompt-column and --answer-column"),
    "no output": ({"instruction": "a", "outptu": "b"}, "no key 'output'; it has: instruction, outptu. Did you mean"),
    "no completion": ({"prompt": "a"}, "has no key 'completion'; it has: prompt"),
    "no prompt": ({"completion": "a"}, "has no key 'prompt'; it has: completion"),
    "no instruction": ({"output": "a"}, "has no key 'instruction'; it has: output"),
    "a pair": ({"prompt": "a", "chosen": "b", "rejected": "c"}, "--dpo trains on those"),
    "empty": ({"instruction": " ", "output": "b"}, "'instruction' is empty"),
    "empty answer": ({"instruction": "a", "output": ""}, "'output' is empty"),
    "number": ({"prompt": 3, "completion": "b"}, "'prompt' is no text, but a int"),
    "no list": ({"messages": "hi"}, "'messages' is no list of messages"),
    "no messages": ({"messages": []}, "'messages' is no list of messages"),
    "role": ({"messages": [{"role": "usr", "content": "a"}]}, "message 1 has the role 'usr'; there are: system"),
    "no role": ({"messages": [{"content": "a"}]}, "message 1 has no key 'role'; it has: content"),
    "no content": ({"messages": [ASK, {"role": "assistant"}]}, "message 2 has no key 'content'"),
    "message": ({"messages": ["hi"]}, "message 1 is no object"),
    "twice": ({"messages": [ASK, ASK]}, "message 2 is the user's where the assistant's has to be"),
    "answers": ({"messages": [ASK, SAY, SAY]}, "message 3 is the assistant's where the user's has to be"),
    "late system": ({"messages": [ASK, {"role": "system", "content": "x"}]}, "message 2 is the system's"),
    "no answer": ({"messages": [ASK]}, "has no answer"),
    "system alone": ({"messages": [{"role": "system", "content": "x"}]}, "has no answer"),
    "a list": ([1], "message 1 is no object"),
    "a text": ("hi", "is no object, but a str"),
    "no text": ({"messages": [ASK, {"role": "assistant", "content": None}]}, "message 2: 'content' has no text"),
    "nameless": ({"messages": [ASK, {"role": "assistant", "tool_calls": [{}]}]}, "message 2 has a tool call without"),
    "part": ({"messages": [{"role": "user", "content": [3]}]}, "message 1: 'content' part 1 is no object"),
    "half learned": ({"messages": [ASK, SAY | {"weight": 0.5}]}, "'weight' is 0.5; it has to be 0 or 1, false or true"),
    "history": (ALPACA | {"history": [["a"]]}, "'history' 1 is no pair of a question and an answer"),
    "judged": ({"messages": [ASK, SAY], "label": False}, "'label': false, an answer that is not to be learned"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_malformed_is_named_by_line_and_key(tmp_path, case):
    item, message = REFUSED[case]
    for name, place in (("data.jsonl", "line 2"), ("data.json", "example 2")):
        with pytest.raises(UserError, match=re.escape(message)) as error:
            read_conversations(written(tmp_path, [ALPACA, item], name))
        assert f"data.{name.split('.')[1]} {place}" in str(error.value)


PAIRS_REFUSED = {
    "no rejected": ({"prompt": "a", "chosen": "b"}, "line 1 has no key 'rejected'; it has: prompt, chosen"),
    "equal": ({"prompt": "a", "chosen": "b", "rejected": "b"}, "line 1: 'chosen' and 'rejected' are the same"),
    "ends": ({"prompt": [ASK, SAY], "chosen": "b", "rejected": "c"}, "'prompt' ends with the assistant's message"),
    "user": ({"prompt": "a", "chosen": [ASK], "rejected": "c"}, "'chosen' ends with the user's message"),
    "empty": ({"prompt": "a", "chosen": "b", "rejected": ""}, "'rejected' is empty"),
    "empty list": ({"prompt": "a", "chosen": "b", "rejected": []}, "'rejected' is empty"),
    "no prompt": ({"chosen": "b", "rejected": "c"}, "'chosen' is no conversation"),
    "no turn": ({"chosen": [SAY], "rejected": [BYE]}, "has no prompt"),
    "differ": ({"chosen": [ASK, SAY], "rejected": [OTHER, BYE]}, "differ before their last answers"),
    "another": ({"prompt": "why", "chosen": [ASK, SAY], "rejected": [ASK, BYE]}, "'prompt' is not what comes before"),
    "transcript": ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a"}, "ends with the user's"),
}


@pytest.mark.parametrize("case", PAIRS_REFUSED)
def test_what_is_no_pair_is_named(tmp_path, case):
    item, message = PAIRS_REFUSED[case]
    with pytest.raises(UserError, match=re.escape(message)):
        read_pairs(written(tmp_path, [item]))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", '{"prompt": "a", "completion": "b"}\n{"prompt": \n', "a.jsonl line 2 is not JSON"),
        ("a.json", "[1,", "is not JSON"),
        ("a.json", "{}", "is not a list of examples: it holds one dict"),
        ("a.jsonl", "\n\n", "holds no examples"),
        ("a.json", "[]", "holds no examples"),
        ("a.txt", "hi", "holds no conversations: give 'strings' (bundled) or a .json or .jsonl file"),
        ("a.json", "[" * 100_000, "is not JSON"),
    ],
)
def test_files_that_hold_no_conversations_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(message)):
        read_conversations(str(tmp_path / name))


@pytest.mark.parametrize(
    "item",
    [
        {"prompt": "a\ud83d", "completion": "b"},
        {"prompt": "a", "completion": "\ude00"},
        {"instruction": "a", "input": "\ud83d", "output": "b"},
        {"messages": [{"role": "system", "content": "\ud83d"}, ASK, SAY]},
        {"messages": [ASK, {"role": "assistant", "content": "\ud83d"}]},
        {"prompt": "a", "completion": "b", "task": "\ud83d"},
        {"prompt": "a", "completion": "b", "\ud83d": 1},
        {"prompt": "a", "chosen": "b", "rejected": "\ud83d"},
        {"prompt": [{"role": "user", "content": "\ud83d"}], "chosen": "b", "rejected": "c"},
    ],
)
def test_half_of_a_character_is_refused_wherever_it_stands(tmp_path, item):
    read = read_pairs if "chosen" in item else read_conversations
    for name, place in (("data.jsonl", "line 1"), ("data.json", "example 1")):
        with pytest.raises(UserError, match=f"{name} {place} has half of a character"):
            read(written(tmp_path, [item], name))


def test_a_home_of_nobody_is_a_readable_mistake():
    with pytest.raises(UserError, match="no-such-user"):
        read_conversations("~no-such-user/chat.jsonl")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere.json"):
        read_conversations(str(tmp_path / "nowhere.json"))


def test_duplicates_are_dropped_and_one_question_is_on_one_side(tmp_path):
    items = [{"prompt": f"what is {n // 3}", "completion": "ab"[n % 2] + " " * (n % 3)} for n in range(300)]
    _, found = read_conversations(written(tmp_path, items))
    assert len(drop_duplicates(found)) == 200
    assert len(drop_duplicates([found[0], found[0]._replace(turns=(found[0].turns[0], Turn("assistant", "A")))])) == 2
    sides = split_examples(found, 3)
    texts = [{c.text for c in sides[side]} for side in SIDES]
    assert (
        sum(map(len, texts)) == 100 and not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    )
    assert min(len(sides["val"]), len(sides["test"])) >= 20


@pytest.fixture(scope="module")
def strings():
    return string_tasks(0)


def strings_of(conversations):
    """Every string that is asked about: what follows the words of the question."""
    asks = sorted((task.ask.removesuffix("{}") for task in (TASKS | SEEN | UNSEEN).values()), key=len, reverse=True)
    found = set()
    for conversation in conversations:
        for turn in conversation.turns[::2]:
            found.add(next(turn.text.removeprefix(ask) for ask in asks if turn.text.startswith(ask)))
    return found


def test_no_string_of_one_side_is_on_another(strings):
    train, val, test = (strings_of(strings[side]) for side in SIDES)
    assert len(train) > 60_000 and not train & test and not train & val and not val & test
    assert {len(text) for text in train | test} == set(range(MIN_LENGTH, MAX_LENGTH + 1))
    assert not {"+".join(sorted(s.split("+"))) for s in train} & {"+".join(sorted(s.split("+"))) for s in test}


def test_held_out_compositions_are_in_no_training_example(strings):
    asked = {side: [turn.text for c in strings[side] for turn in c.turns[::2]] for side in SIDES}
    for task in UNSEEN.values():
        words = task.ask.removesuffix("{}")
        assert not any(text.startswith(words) for side in ("train", "val") for text in asked[side])
        assert sum(text.startswith(words) for text in asked["test"]) == 200
    for task in SEEN.values():
        assert sum(text.startswith(task.ask.removesuffix("{}")) for text in asked["train"]) > 1000


def test_the_answers_are_right(strings):
    by_hand = {
        "copy": lambda s: s,
        "reverse": lambda s: "".join(s[len(s) - 1 - i] for i in range(len(s))),
        "upper-case": lambda s: "".join(chr(ord(c) - 32) for c in s),
        "count": lambda s: str(len(re.findall("[aeiou]", s))),
        "sort": lambda s: "".join(c * s.count(c) for c in ascii_uppercase + ascii_lowercase),
        "add": lambda s: str(int(s.split("+")[0]) + int(s.split("+")[1])),
        "first letters": lambda s: "".join(b for a, b in zip(" " + s, s, strict=False) if a == " "),
    }
    for conversation in strings["test"]:
        question, names = conversation.turns[0].text, conversation.label.split(", ")
        text = question.removeprefix((TASKS | SEEN | UNSEEN)[conversation.label].ask.removesuffix("{}"))
        for name in names:
            text = by_hand[name](text)
        assert conversation.answer == text, question
    assert {c.group for c in strings["test"]} == {"", "compositions", "held-out compositions"}


def test_the_tasks_follow_from_the_seed(few_strings):
    first, again, other = map(string_tasks, (0, 0, 1))
    assert first == again and all(first[side] != other[side] for side in SIDES)


@given(st.from_regex(r"[0-9]{1,3}\+[0-9]{1,3}", fullmatch=True))
@settings(max_examples=50)
def test_the_order_of_summands_does_not_matter_to_the_side(text):
    assert side_of(text) == side_of("+".join(reversed(text.split("+"))))
