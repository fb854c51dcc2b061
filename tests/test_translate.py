"""`python -m finetune.translate` through its command line: runs, resuming, translating, pictures, every refusal."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from data.errors import UserError
from data.pairs import dates, reversal, transliteration
from data.pairs.files import read_pairs
from data.tokenizers import Special
from docs.flags import TASKS
from engine.config.settings import marked
from engine.run.identity import FREE
from engine.training.trainer import Trainer
from finetune.translate.beam import search
from finetune.translate.decoding import greedy
from finetune.translate.scores import character_error_rate, chrf, edit_distance
from finetune.translate.translator import load_translator
from makemore.config import GRUConfig, Mark
from makemore.seq2seq import Seq2Seq
from tests.helpers import TERM, at_call, left, metrics, ok, refused, summary

MODULE = "-m finetune.translate"
QUICK = ("--n-embd", 8, "--n-hidden", 8, "--steps", 6, "--eval-interval", 3, "--batch-size", 8)


@pytest.fixture
def anki(tmp_path):
    """A file of pairs as Anki's: 300 words and their capitals, and an attribution."""
    rng, lines = random.Random(0), []
    for n in range(300):
        word = "".join(rng.choices("abcd", k=rng.randint(2, 5)))
        lines.append(f"{word}\t{word.upper()}\tCC-BY 2.0 (France) Attribution: tatoeba.org #{n}\n")
    path = tmp_path / "upper.tsv"
    path.write_text("".join(lines), "utf-8")
    return path


def test_a_file_of_pairs_is_learned_reported_and_translated(cli, anki, drawn):
    done = ok(
        cli(
            MODULE,
            "--data",
            anki,
            *QUICK,
            "--n-embd",
            16,
            "--n-hidden",
            48,
            "--steps",
            400,
            "--batch-size",
            16,
            "--eval-interval",
            100,
            "--lr",
            0.01,
            "--out",
            "run",
        )
    )
    found = summary()["test"]
    assert found["exact_match"] > 0.6 and found["character_error_rate"] < 0.2 and found["chrf"] > 60
    assert "exact match  char errors  chrF" in done.out and "duplicates" in done.err
    assert metrics()[-1]["val_exact_match"] > metrics()[0]["val_exact_match"] and "val_chrf" in metrics()[-1]
    written = [json.loads(line) for line in open("run/generations.jsonl")]
    assert sum(line["exact"] for line in written) / len(written) == found["exact_match"]
    one = ok(cli(MODULE, "--out", "run", "--translate", written[0]["source"], "--map", "map.png"))
    assert one.out == written[0]["answer"] + "\n" and imread("map.png").ndim == 3
    sources = "".join(f"{line['source']}\n" for line in written)
    many = ok(cli(MODULE, "--out", "run", "--translate", "-", stdin=sources.encode()))
    assert many.out.splitlines() == [line["answer"] for line in written]
    Path("sources.txt").write_text(sources)
    assert ok(cli(MODULE, "--out", "run", "--translate", "@sources.txt")).out == many.out
    again = json.loads(ok(cli(MODULE, "--out", "run", "--eval-only")).out)
    assert again["exact_match"] == found["exact_match"] and again["loss"] == pytest.approx(found["loss"])
    searched = json.loads(ok(cli(MODULE, "--out", "run", "--eval-only", "--beams", 3, "--data", anki)).out)
    assert searched["beams"] == 3 and searched["examples"] == 300 and searched["exact_match"] > 0.6


KINDS = {
    "none": ("--model", "lstm", "--align", "none"), "bahdanau": ("--align", "bahdanau"), "luong": (),
    "transformer": ("--model", "transformer", "--n-head", 2),
}  # fmt: skip


def sized(kind: str) -> list:
    """The flags of a small model of a kind; a Transformer has no hidden width."""
    flags = [*QUICK, *KINDS[kind]]
    if kind == "transformer":
        del flags[flags.index("--n-hidden") : flags.index("--n-hidden") + 2]
    return flags


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", ["dates", "reverse", "transliterate"])
def test_generated_pairs_train_any_model(cli, few_pairs, kind, data):
    ok(cli(MODULE, "--data", data, *sized(kind), "--beams", 2, "--out", "run"))
    assert summary()["test"]["beams"] == 2 and metrics()[-1]["val_loss"] < metrics()[0]["val_loss"]
    assert ("groups" in summary()["test"]) == (data == "reverse")


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_and_resumed_equals_never_interrupted(cli, anki, tmp_path, kind):
    flags = ("--data", anki, *sized(kind), "--dropout", 0.2, "--n-layer", 2)
    ok(cli(MODULE, *flags, "--out", tmp_path / "whole"))
    with at_call(Trainer, "step", 4, TERM):
        stopped = cli(MODULE, *flags, "--out", tmp_path / "run")
    assert stopped.code == 143 and "python -m finetune.translate --resume --out" in stopped.out
    ok(cli(MODULE, "--resume", "--out", tmp_path / "run"))
    assert left(tmp_path / "run") == left(tmp_path / "whole")


def test_what_a_resume_changes_is_no_part_of_the_identity(cli, anki):
    ok(cli(MODULE, "--data", anki, *QUICK, "--out", "run"))
    ok(cli(MODULE, "--resume", "--out", "run", "--beams", 2, "--steps", 8))
    assert summary()["test"]["beams"] == 2
    ok(cli(MODULE, "--resume", "--out", "run", "--beams", 3))
    ok(cli(MODULE, "--out", "run", "--translate", "ab"))
    for cls in TASKS.values():
        assert marked(cls, Mark.RESUMABLE, Mark.PLACE) <= FREE


@pytest.mark.parametrize("kind", ["luong", "transformer"])
def test_two_processes_train_what_one_trains(cli, ranks, anki, kind):
    flags = ("--data", anki, *sized(kind), "--grad-accum", 2)
    ok(cli(MODULE, *flags, "--out", "one"))
    for process in ranks(2, MODULE, *flags, "--out", "run"):
        ok(process.wait())
    assert left(Path("run")) == left(Path("one"))


def test_other_commands_say_what_such_a_run_is_for(cli, anki):
    ok(cli(MODULE, "--data", anki, *QUICK, "--out", "run"))
    for words in (("sample.py", "run"), ("train.py", "--init", "run", "--data", anki)):
        refused(cli(*words), "writes a text only after another one, its source", "python -m finetune.translate")
    refused(cli("-m finetune.classify", "--out", "run", "--eval-only"), "run is not a run of")
    ok(cli("train.py", "--model", "bigram", "--steps", 1, "--out", "names"))
    of_names = cli(MODULE, "--out", "names", "--translate", "x")
    refused(of_names, "names is not a run of python -m finetune.translate")
    assert "--init" not in of_names.err
    refused(cli(MODULE, "--init", "names", "--data", anki), "names is not a run of python -m finetune.translate")
    anki.write_text(anki.read_text() + "ab\tAB\n")
    refused(cli(MODULE, "--out", "run", "--eval-only"), "the examples of", "have changed since the run began")


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--model", "mlp"], "--model mlp is no encoder and decoder; there are: gru, lstm, transformer"),
        (["--model", "transformer", "--align", "none"], "--align means nothing to --model transformer"),
        (["--model", "transformer", "--positions", "alibi"], "--positions alibi counts back"),
        (["--model", "transformer", "--window", 4], "--window means nothing"),
        (["--norm", "batch"], "--norm batch means nothing"),
        (["--n-hidden", 7], "--n-hidden 7 is odd"),
        (["--init", "names"], "names"),
        (["--hash-ngrams", 2], "--hash-ngrams means nothing"),
        (["--cuda-graph", "on"], "--cuda-graph on"),
        (["--shard"], "--shard gathers weights"),
        (["--map", "x.png"], "--map goes with --translate"),
        (["--beams", 0], "--beams is 0"),
        (["--data", "dates", "--encoding", "latin-1"], "--encoding means nothing to the bundled dates"),
        (
            ["--data", "nowhere.tsv"],
            "no such file: nowhere.tsv; pairs by name there are: dates, reverse, transliterate",
        ),
        (["--context", 2], "raise --context"),
        (["--out", "run", "--translate", " "], "run"),
    ],
)
def test_what_cannot_be_is_refused(cli, anki, flags, words):
    given = flags if "--data" in flags or "--translate" in flags else ["--data", anki, *flags]
    refused(cli(MODULE, *given), words)


def test_a_transformer_translates_what_fits_into_its_context_and_draws_where_it_looks(cli, anki, drawn):
    ok(cli(MODULE, "--data", anki, *sized("transformer"), "--out", "run"))
    ok(cli(MODULE, "--out", "run", "--translate", "abc", "--map", "map.png"))
    assert imread("map.png").ndim == 3
    refused(
        cli(MODULE, "--out", "run", "--translate", "a" * 6),
        "'aaaaaa' has 7 tokens, its end included, which is more than",
    )


def test_a_line_of_translations_for_each_line_and_a_map_of_one(cli, anki, drawn):
    ok(cli(MODULE, "--data", anki, *QUICK, "--out", "run"))
    Path("some.txt").write_text("ab\n\nba\nab\n")
    first, empty, *others = ok(cli(MODULE, "--out", "run", "--translate", "@some.txt")).out.split("\n")
    assert empty == "" and len(others) == 3 and others[1] == first
    piped = ok(cli(MODULE, "--out", "run", "--translate", "-", stdin=b"ab\n\nba\nab\n")).out
    assert piped.split("\n") == [first, empty, *others]
    for words, stdin in (("@some.txt", b""), ("-", b"ab\n\nba\n")):
        several = cli(MODULE, "--out", "run", "--translate", words, "--map", "map.png", stdin=stdin)
        refused(several, "--map draws one translation")
    ok(cli(MODULE, "--out", "run", "--translate", "-", "--map", "map.png", stdin=b"ab\n\n"))


def test_a_file_is_read_as_anki_and_tatoeba_have_it_and_faults_are_named(tmp_path, capsys):
    path = tmp_path / "x.tsv"
    path.write_bytes(b"\xef\xbb\xbfHi.\tSalut.\tCC-BY\r\nRun!\tCours !\tCC-BY\r\n\r\n")
    assert [pair[:2] for pair in read_pairs(str(path))[1]] == [("Hi.", "Salut."), ("Run!", "Cours !")]
    path.write_text("1\tHi.\t7\tSalut.\n2\tRun!\t8\tCours !\n")
    assert [pair[:2] for pair in read_pairs(str(path))[1]] == [("Hi.", "Salut."), ("Run!", "Cours !")]
    path.write_text("a\tb\n" * 20 + "no tab\n")
    assert len(read_pairs(str(path))[1]) == 20 and "(the first: 21)" in capsys.readouterr().err
    path.write_text("a\tb\nno tab\nc\t\n")
    with pytest.raises(UserError, match=r"x.tsv line 2 \(2 of 3 lines\): no source<TAB>target"):
        read_pairs(str(path))
    path.write_text("1\teng\tHi.\n2\tfra\tSalut.\n")
    with pytest.raises(UserError, match="x.tsv has sentences .*and not their translations"):
        read_pairs(str(path))
    path.write_text("\n")
    with pytest.raises(UserError, match="holds no pair"):
        read_pairs(str(path))


def test_generated_pairs_are_right_and_no_date_is_on_two_sides(few_pairs):
    sides, again = dates.make(0), dates.make(0)
    assert sides == again and sides != dates.make(1)
    found = {side: {pair.target for pair in pairs} for side, pairs in sides.items()}
    assert not found["train"] & found["test"] and not found["train"] & found["val"] and not found["val"] & found["test"]
    day = dates.datetime.date(1987, 5, 3)
    assert [dates.spelled(day, spelling) for spelling in dates.SPELLINGS] == [
        "3 May 1987", "May 3, 1987", "03.05.1987", "05/03/1987", "3 May 1987", "Sunday, 3 May 1987",
        "the 3rd of May 1987", "May 3rd, 1987", "1987 May 3",
    ]  # fmt: skip
    assert all(pair.target == pair.text[::-1] and 3 <= len(pair.text) <= 24 for pair in reversal.make(0)["test"])


def test_words_are_transliterated_by_the_longest_rule_and_by_what_stands_before(few_pairs):
    words = {"shchuka": "щука", "eto": "это", "kley": "клей", "syr": "сыр", "yozh": "ёж", "chaykhana": "чайхана"}
    assert {word: transliteration.transliterated(word) for word in words} == words
    sides = transliteration.make(0)
    texts = {side: {pair.text for pair in pairs} for side, pairs in sides.items()}
    assert not texts["train"] & texts["test"] and not texts["val"] & texts["test"]


def test_error_rates_count_edits():
    assert edit_distance("kitten", "sitting") == 3 and edit_distance("", "abc") == 3 == edit_distance("abc", "")
    assert character_error_rate(["kitten", "ab"], ["sitting", "ab"]) == 3 / 9


def test_chrf_is_that_of_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    rng = random.Random(0)
    for length in (1, 4, 30):
        pairs = [["".join(rng.choices("ab c", k=rng.randint(0, length))) for _ in range(2)] for _ in range(20)]
        answers, wanted = map(list, zip(*pairs, strict=True))
        assert chrf(answers, wanted) == pytest.approx(sacrebleu.corpus_chrf(answers, [wanted]).score, abs=1e-9)
    assert chrf(["same text"], ["same text"]) == 100 and chrf(["abc"], ["xyz"]) == 0


def small_model() -> tuple[Seq2Seq, torch.Tensor]:
    """A model of three characters that ends soon, and two sources."""
    torch.manual_seed(4)  # of which the likeliest translation is not the one with the best mean
    model = Seq2Seq(9, GRUConfig(n_layer=1, n_embd=4, n_hidden=8), attention="luong-dot").eval()
    with torch.no_grad():
        model.decoder.lm_head.weight *= 8
    return model, torch.tensor([[6, 7, 8, 2], [8, 2, 0, 0]])


@torch.no_grad()
def mean_log_p(model: Seq2Seq, prefix: torch.Tensor, ids: list[int]) -> float:
    """By the model itself, of a translation and its end."""
    logits = model(torch.tensor([[1, *ids]]), None, model.start(prefix, None)).logits[0].double()
    logits[:, Special().never_predicted] = -math.inf
    targets = torch.tensor([*ids, 2])
    return float(logits.log_softmax(-1)[torch.arange(len(targets)), targets].mean())


@torch.no_grad()
def test_a_search_as_wide_as_all_texts_finds_the_best_one_and_one_beam_is_greedy():
    model, sources = small_model()
    every = [[*text] for n in range(4) for text in _texts_of(n)]
    found = search(model, sources, Special(), 4, 64)
    for row, length in enumerate((4, 2)):
        prefix = sources[row : row + 1, :length]
        best = max(every, key=lambda ids: mean_log_p(model, prefix, ids))
        assert mean_log_p(model, prefix, found[row]) == pytest.approx(mean_log_p(model, prefix, best), abs=1e-6)
    assert search(model, sources, Special(), 12, 1) == greedy(model, sources, Special(), 12)
    assert search(model, sources[1:, :2], Special(), 4, 8) == search(model, sources, Special(), 4, 8)[1:]


def _texts_of(n: int) -> list[tuple[int, ...]]:
    return [()] if not n else [(*text, token) for text in _texts_of(n - 1) for token in (6, 7, 8)]


def test_a_run_is_loaded_and_asked_in_python(cli, few_pairs):
    ok(cli(MODULE, *QUICK, "--out", "run"))
    translator = load_translator("run", device="cpu")
    answers = translator(["May 3, 1987", "3 May 1987"])
    assert len(answers) == 2 and translator(["3 May 1987"]) == answers[1:]
