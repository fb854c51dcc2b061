"""python -m explain over many texts: hidden units, changed characters, groups."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data.tokenizers import CharTokenizer
from explain.intervals import of_ratio, of_share
from explain.neurons import neurons, share_explained
from explain.subject import Subject
from explain.units import activations, read_texts
from tests.helpers import ok, quick, refused
from tests.test_explain import MODULE, model

LETTERS = "abcdefghijklmn"


def subject_of(*flags: str) -> Subject:
    return Subject("run", flags[1], model(*flags, "--norm", "none"), None, [], CharTokenizer(LETTERS), True)


@pytest.mark.parametrize("family", ["transformer", "gru", "mlp", "cnn"])
def test_activations_are_those_that_the_layers_pass_on(family):
    subject = subject_of("--model", family, "--n-layer", "2")
    read = read_texts(subject, ["abcabc", "mad", "llama"])
    layers, whole = activations(subject, read), subject.model
    assert read.row.tolist() == [0] * 7 + [1] * 4 + [2] * 6 and read.place.tolist()[:9] == [*range(7), 0, 1]
    with torch.no_grad():
        for row in range(3):
            mine, tokens = [layer[read.row == row] for layer in layers], read.tokens[read.row == row]
            hidden = whole.hidden(tokens[None], None, None)[0][0]
            if family in ("gru", "mlp"):
                torch.testing.assert_close(mine[-1], hidden)
            elif family == "transformer":  # what the last block adds is made of its units alone
                block, given = whole.h[-1], []
                hook = block.mlp.register_forward_hook(lambda _, __, out, given=given: given.append(out[0]))
                whole.hidden(tokens[None], None, None)
                hook.remove()
                torch.testing.assert_close(block.mlp.c_proj(mine[-1]), given[0])
            else:
                skips = sum(layer.out(units)[:, whole.mix.in_features :]
                            for layer, units in zip(whole.layers, mine, strict=True))  # fmt: skip
                torch.testing.assert_close(torch.relu(whole.mix(torch.relu(skips))), hidden)


def test_the_share_explained_is_whole_of_a_function_and_nothing_of_noise():
    group = torch.randint(0, 9, (400,), generator=torch.Generator().manual_seed(1))
    noise = torch.randn(400, 50, generator=torch.Generator().manual_seed(2))
    assert share_explained(torch.stack([group.sin(), group.float() ** 2], 1), group).tolist() == pytest.approx([1, 1])
    assert share_explained(noise, group).mean() < 0.02
    assert share_explained(noise, torch.arange(400)).abs().max() == 0  # a group of one explains nothing


def test_a_unit_that_sees_one_letter_is_found_first():
    subject = subject_of("--model", "gru", "--n-layer", "1", "--n-hidden", "12")
    layer, tokenizer = subject.model.layers[0], subject.tokenizer
    with torch.no_grad():  # unit 7: forgets all at every step, and is 1 after a `k`, else -1
        for part in (layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0):
            part[[7, 19, 31]] = 0
        layer.bias_ih_l0[19] = -50.0
        table = subject.model.wte.weight
        layer.weight_ih_l0[31] = 50 * torch.linalg.pinv(table)[:, int(tokenizer.encode("k")[0])]
        layer.bias_ih_l0[31] = -25.0
    found = neurons(
        subject, ["kakadu".replace("u", "a"), "blink", "make", "dame", "hack", "gecko".replace("o", "a")] * 9
    )
    first = found.numbers["units"][0]
    assert (first["layer"], first["unit"], first["by"], first["high"][0]) == (1, 7, "current", "k")
    assert first["explained"]["current"] > 0.95 and {place["token"] for place in first["largest"]} == {"k"}
    assert neurons(subject, ["kama"]).numbers["ranked_by"] == "the spread over the text"


def test_units_of_a_run_by_text_by_file_and_by_number(cli, names):
    ok(cli("train.py", *quick("gru", data="names.txt", out="run")))
    Path("people.csv").write_text("id,name\n" + "".join(f"{n},anna{n % 7 * 'b'}\n" for n in range(60)))
    ok(cli(MODULE, "run", "--what", "neurons", "--data", "people.csv", "--text-column", "name", "--unit", "1:3"))
    found = json.loads(Path("explained/neurons.json").read_text())
    assert [(each["layer"], each["unit"]) for each in found["units"]] == [(1, 3)] and found["tokens"] > 300
    assert Path("explained/neurons.png").exists()
    ok(cli(MODULE, "run", "--what", "neurons", "--data", "-", stdin=b"anna\nbob\n"))
    assert json.loads(Path("explained/neurons.json").read_text())["tokens"] == len("anna\nbob\n")
    for words, said in {
        ("neurons", "--text", "anna", "--unit", "9:0"): "there is no layer 9",
        ("neurons", "--text", "anna", "--unit", "1:999"): "layer 1 has the units 0 to",
        ("neurons", "--text", "anna", "--unit", "one"): "give LAYER:N",
        ("neurons",): "needs --text or --data",
        ("neurons", "--text", "anna", "--data", "names.txt"): "exclude each other",
        ("neurons", "--text", "anna", "--text-column", "name"): "nothing without --data",
        ("neurons", "--data", "names.txt", "--text-column", "name"): "is for tables",
        ("neurons", "--data", "people.csv"): "no column 'text'",
        ("neurons", "--data", "enwik8:nothing"): "'enwik8' has no part 'nothing'",  # a data set like any other
        ("lens", "--text", "anna", "--unit", "1:1"): "--unit means nothing to --what lens",
    }.items():
        refused(cli(MODULE, "run", "--what", *words), said)


def test_bits_of_a_language_model_by_group(cli, names):
    ok(cli("train.py", *quick("gru", data="names.txt", kind="lines", out="run")))
    people = [line for line in Path("names.txt").read_text().split("\n") if line][:30]
    Path("people.csv").write_text("name,of\n" + "".join(f"{name},a\n{name[::-1]},b\n" for name in people) + "Ana,c\n")
    done = ok(cli(MODULE, "run", "--what", "groups", "--data", "people.csv", "--text-column", "name", "--group-column",
                  "of"))  # fmt: skip
    found = json.loads(Path("explained/groups.json").read_text())
    by_group = {row["group"]: row for row in found["groups"]}
    scored = json.loads(ok(cli("sample.py", "run", "--score", "\n".join(people), "--json")).out)
    assert by_group["a"]["figure"] == pytest.approx(scored["bits_per_char"], rel=1e-4)
    assert [row["figure"] for row in found["groups"]] == sorted(
        (row["figure"] for row in found["groups"]), reverse=True
    )
    assert all(row["interval"][0] <= row["figure"] <= row["interval"][1] for row in found["groups"])
    assert by_group["c"]["few"] and by_group["c"]["unknown"] == pytest.approx(1 / 3)
    assert "only 1: says little" in done.out and "33.3% of its characters unknown" in done.out
    again = ok(cli(MODULE, "run", "--what", "groups", "--data", "people.csv", "--text-column", "name", "--group-column",
                   "of"))  # fmt: skip
    assert again.out == done.out
    refused(
        cli(MODULE, "run", "--what", "groups", "--data", "people.csv", "--label-column", "of"),
        "--label-column is for classifiers",
    )
    refused(cli(MODULE, "run", "--what", "groups"), "--what groups needs --data")
    refused(cli(MODULE, "run", "--what", "adversarial", "--text", "anna"), "run is not a run of")


def test_intervals_hold_what_they_say():
    assert of_share(0, 0) == (0, 1) and of_share(0, 20)[0] == 0 and of_share(20, 20)[1] == 1
    rng, inside = np.random.default_rng(5), []
    for _ in range(60):
        below = rng.integers(1, 9, 80).astype(float)
        low, high = of_ratio(below * 2 + rng.normal(0, 1, 80), below)
        inside.append(low <= 2 <= high)
    assert 50 <= sum(inside) < 60
