"""The end of a prompt in BPE: its last token is drawn again, with what may follow."""

import json

import pytest

from data.bpe import learn
from data.tokenizers import ByteTokenizer, CharTokenizer
from engine import load_run
from engine.run.healing import heal
from engine.run.writing import Writer
from finetune.instruct.chat import Chat
from tests.helpers import LINES, ok, trained_any

CODE = "".join(
    f"import {name}\nimport {name}  as {name[0]}\n\n\ndef {name}():\n    pass\n\n\n" for name in ("os", "re")
)
GREEDY = {"temperature": 0, "max_new_tokens": 12}


@pytest.fixture
def code(cli, tmp_path):
    """A run that has counted a text, in BPE."""
    (tmp_path / "code.txt").write_text(CODE * 9)
    return load_run(trained_any(cli, "ngram", data="code.txt", tokenizer="bpe:300"))


def test_a_prompt_goes_on_alike_with_and_without_its_blank(code):
    bare, blank = (code.generate(prompt, **GREEDY)[0] for prompt in ("import", "import "))
    assert bare == blank and bare.startswith("import os\n")
    cold = code.generate("import ", heal=False, **GREEDY)[0]
    assert cold.startswith("import  "), "unhealed it goes on with white space, or this text shows nothing"


@pytest.mark.parametrize("prompt", ["i", "impor", "import o", "import os\n", "import os  ", "de", "def os():\n   "])
def test_a_prompt_that_stands_in_the_text_goes_on_as_it_does_there(code, prompt):
    (said,) = code.generate(prompt, **GREEDY)
    assert said.startswith(prompt) and len(said) > len(prompt) and said in CODE * 9
    assert "".join(code.pieces(prompt, **GREEDY)) == said.removeprefix(prompt)


def test_through_the_command_and_with_lines(cli, tmp_path):
    names = [f"anna {last}" for last in ("smith", "smithson", "baker")] * 20
    (tmp_path / "names.txt").write_text("\n".join(names))
    trained_any(cli, "ngram", **LINES, tokenizer="bpe:280")
    flags = ["--num", 20, "--seed", 1, "--prompt"]
    for shown in ([], ["--stream"]):
        said = ok(cli("sample.py", "run", *shown, *flags, "anna smith")).out.splitlines()
        assert set(said) == {"anna smith", "anna smithson"}
        said = set(ok(cli("sample.py", "run", *shown, *flags, "anna ")).out.splitlines())
        assert len(said) > 1 and said <= set(names)
    assert set(ok(cli("sample.py", "run", "--no-heal", *flags, "anna ")).out.splitlines()) - set(names)


def test_what_gives_only_the_prompts_end_again_is_no_new_token(code):
    for prompt in ("import", "import "):
        counts = {s.end: s.new for s in code.samples(prompt, 30, max_new_tokens=1, seed=0)}
        assert counts.keys() == {"length"} and counts["length"] in (" os", " re", "os", "re", " ")


def test_nothing_is_healed_where_nothing_is_cut_or_asked_for(code):
    bpe = code.tokenizer
    assert heal(bpe, [], []) is None and heal(bpe, [bpe.special.bos], []) is None
    assert heal(CharTokenizer("ab"), [6], []) is heal(ByteTokenizer(), [70], []) is None
    empty = code.generate("", seed=3, max_new_tokens=9)
    assert empty == code.generate("", seed=3, max_new_tokens=9, heal=False)
    ids = bpe.encode("import ").tolist()
    assert code.score("import ").n_tokens == len(ids), "a score is of the text as it is"


@pytest.mark.parametrize("text", ["猫", "a猫", "é", "x🙂", "a \u3000"])
def test_characters_of_several_bytes_are_whole_at_the_seam(text):
    tokenizer = learn(["plain text"], 256)  # every byte a token: the dropped one is the end of a character
    ids = tokenizer.encode(text + "猫é!").tolist()
    n = len(tokenizer.encode(text))
    healing = heal(tokenizer, ids[:n], [])
    assert healing.shortened == ids[: n - 1]
    writer = Writer(tokenizer, healing=healing)
    assert "".join(map(writer.write, ids[n - 1 :])) + writer.close() == "猫é!"


def test_several_blanks_may_be_divided_as_before_a_word():
    tokenizer = learn(["a  b   c"] * 9, 262)
    ids = tokenizer.encode("a  ").tolist()
    assert len(ids) == 2, "two blanks are one token here"
    healing = heal(tokenizer, ids, [])
    (one,) = tokenizer.encode(" ").tolist()
    assert healing.allowed(b"  ")[one] and healing.rest(b"  ", one) == b" "
    assert not healing.allowed(b"ab")[tokenizer.encode("a")[0]], "but words only as a whole"


def test_batches_hold_every_row_to_its_own(code):
    prompts = ["import ", "def ", "import os", "", "pass\n\n"]
    together = code.generate(prompts, 3, seed=5, max_new_tokens=8)
    assert together == [text for prompt in prompts for text in code.generate(prompt, 3, seed=5, max_new_tokens=8)]


def test_in_a_conversation_white_space_alone_is_healed(cli, tmp_path):
    asked = [{"prompt": f"{say} import", "completion": " os"} for say in ("do", "to", "we", "may", "now", "then")]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, asked)))
    flags = ["--model", "bigram", "--data", "chat.jsonl", "--tokenizer", "bpe:270", "--steps", 60, "--lr", 1.0]
    ok(cli("-m finetune.instruct", *flags, "--template", "plain", "--max-answer", 4, "--out", "run"))
    run = load_run("run")
    for asked in ("do import", "do import "):
        said = ok(cli("sample.py", "run", "--chat", "--message", asked)).out
        assert said == ("os\n" if asked.endswith(" ") else " os\n"), "what is said after a blank begins after it"
    assert Chat(run).healing(run.tokenizer.encode("import").tolist()) is None
