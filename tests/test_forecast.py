"""Series of numbers: how tables become tokens, `--kind series`, and `python -m forecast` through the command line."""

import json
import math
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from data.prepare import prepare
from data.series import hours
from data.series.bins import LIMIT, Scale
from data.series.columns import Series, read_columns
from engine.training.trainer import Trainer
from forecast.scores import (
    best_season,
    coverage,
    mean_absolute_error,
    naive_error,
    seasonal_naive,
    weighted_quantile_loss,
)
from tests.helpers import TERM, at_call, evaluated, left, metrics, ok, refused, summary, trained

MODULE = "-m forecast"
SIZES = ("--n-embd", 8, "--n-hidden", 12, "--context", 24, "--batch-size", 4)
QUICK = ("--model", "gru", *SIZES, "--steps", 6, "--eval-interval", 3)
ROWS = 400


def table(rows: int = ROWS, change=lambda n, load, heat: (load, heat)) -> str:
    """A CSV of days with two columns of numbers: one of period 8 and a slower one."""
    lines = ["day,load,heat"]
    for n in range(rows):
        load, heat = change(n, f"{50 + 10 * math.sin(n * math.pi / 4):.3f}", f"{20 + 5 * math.cos(n / 20):.3f}")
        lines.append(f"{date(2020, 1, 1) + timedelta(n)},{load},{heat}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def days(tmp_path):
    path = tmp_path / "days.csv"
    path.write_text(table())
    return path


@pytest.fixture
def run(cli, days):
    """The folder of a short training on the file."""
    ok(cli("train.py", "--data", "days.csv", "--kind", "series", *QUICK, "--out", "run"))
    return Path("run")


def read(tmp_path, content: str, *wanted: str):
    path = tmp_path / "t.csv"
    path.write_text(content)
    return read_columns(path, wanted)


numbers = st.floats(-1e12, 1e12, allow_subnormal=False)


@given(st.lists(numbers, min_size=2, max_size=50), st.integers(4, 256))
def test_a_value_comes_back_within_half_a_bin_or_from_the_outermost(values, bins):
    array = np.array(values)
    scale = Scale.of([Series("x", array)], bins)
    back = scale.read(scale.write(array, 0), 0)
    width = scale.step * scale.deviations[0]
    low, high = scale.values_of(np.array([0, bins - 1]), 0)
    clipped = array.clip(low, high)
    assert np.abs(back - clipped).max() <= width / 2 * (1 + 1e-6) + 1e-9 * np.abs(array).max()
    assert np.array_equal(scale.read(scale.write(back, 0), 0), back)  # what is on the grid stays
    assert Scale.from_json(json.loads(json.dumps(scale.to_json())), "a file") == scale
    assert scale.step == 2 * LIMIT / bins


def test_nothing_leaks_from_what_comes_after_the_training_part(tmp_path):
    path = tmp_path / "days.csv"

    def prepared(change):
        path.write_text(table(change=change))
        store = prepare(str(path), kind="series")
        return store.meta["series"], store.train.tokens.array().copy(), store.val.tokens.array().copy()

    begins = int(ROWS * 0.8)
    scale, train, val = prepared(lambda n, load, heat: (load, heat))
    other = prepared(lambda n, load, heat: (load, heat) if n < begins else ("1000", "-3"))
    assert other[0] == scale and np.array_equal(other[1], train) and not np.array_equal(other[2], val)
    of_test = prepared(lambda n, load, heat: (load, heat) if n < ROWS * 0.9 else ("1000", "-3"))
    assert of_test[0] == scale and np.array_equal(of_test[1], train) and np.array_equal(of_test[2], val)
    changed = prepared(lambda n, load, heat: ("1000", heat) if n == begins - 1 else (load, heat))
    assert changed[0] != scale


def test_columns_of_numbers_are_read_and_others_left_out(tmp_path):
    found, notes = read(tmp_path, table(5))
    assert [each.name for each in found] == ["load", "heat"] and not notes
    assert found[0].values[:2] == pytest.approx([50, 57.071])
    assert [each.name for each in read(tmp_path, table(5), "heat")[0]] == ["heat"]
    assert [each.name for each in read(tmp_path, table(5), "3", "load")[0]] == ["heat", "load"]
    found, _ = read(tmp_path, "1;2\n3;4\n")  # no names, semicolons
    assert [(each.name, each.values.tolist()) for each in found] == [("1", [1, 3]), ("2", [2, 4])]


def test_missing_cells_take_the_last_value_and_a_note_names_their_lines(tmp_path):
    found, notes = read(tmp_path, "a,b\n,1\n2,NA\n3,\n,4\n")
    assert found[0].values.tolist() == [2, 2, 3, 3] and found[1].values.tolist() == [1, 1, 1, 4]
    assert "column 'a' has no value in lines 2, 5" in notes[0] and "column 'b' has no value in lines 3, 4" in notes[1]
    assert "at the beginning the first one after" in notes[0] and "at the beginning" not in notes[1]


@pytest.mark.parametrize("delimiter", [";", "\t"])
@pytest.mark.parametrize("names", ["day;load;price\n", ""])
def test_decimal_commas_are_read(tmp_path, names, delimiter):
    content = names + "1. May;1;2,5\n2. May;3;-1002,75\n3. May;4;1,125\n"
    found, notes = read(tmp_path, content.replace(";", delimiter))
    assert [each.values.tolist() for each in found] == [[1, 3, 4], [2.5, -1002.75, 1.125]] and not notes
    assert [each.name for each in found] == (["load", "price"] if names else ["2", "3"])


@pytest.mark.parametrize("cells", ["1,250;2,750", "1.250,5;2,75", "1,234,567;2"])
def test_a_comma_that_may_part_thousands_is_not_guessed_at(tmp_path, cells):
    first, second = cells.split(";")
    found, notes = read(tmp_path, f"load;price\n1;{first}\n3;{second}\n")
    assert [each.name for each in found] == ["load"]
    assert len(notes) == 1 and "column 'price'" in notes[0]


@pytest.mark.parametrize(
    "content, wanted, words",
    [
        ("a,b\n1,2\n1,x\n3,4\n", ["b"], ["column 'b'", "no series of numbers", "line 3 holds 'x'"]),
        ("a;b\n1;2,500\n1;3\n3;4\n", ["b"], ["line 2 holds '2,500'", "write points for decimals"]),
        ("a,b\n1,inf\n", ["b"], ["line 2 holds 'inf'"]),
        ("a,b\n1,\n2,\n", ["b"], ["'b'", "no value at all"]),
        ("load,b\n1,2\n", ["laod"], ["no column 'laod'", "load, b", "Did you mean 'load'?"]),
        ("a,b\n1,2\n", ["a", "1"], ["names a column of t.csv twice"]),
        ("a,b\nx,y\nz,w\n", [], ["no column of numbers", "line 2 holds 'x'"]),
        ("a,b\n1,2\n1,2,3\n", [], ["line 3 has 3 cells, and the first line 2"]),
        ("", [], ["is empty"]),
    ],
)
def test_a_bad_table_is_refused_with_its_line(cli, tmp_path, content, wanted, words):
    (tmp_path / "t.csv").write_text(content)
    column = ["--column", ",".join(wanted)] if wanted else []
    refused(cli("train.py", "--data", "t.csv", "--kind", "series", *column, *QUICK, "--out", "run"), "t.csv", *words)
    assert not Path("run").exists()


def test_a_column_with_a_word_among_numbers_is_left_out_with_a_warning(cli, tmp_path):
    (tmp_path / "t.csv").write_text(table(100, lambda n, load, heat: (load, "broken" if n == 7 else heat)))
    done = ok(cli("train.py", "--data", "t.csv", "--kind", "series", *QUICK, "--out", "run"))
    assert "column 'heat' of t.csv is left out: line 9 holds 'broken'" in " ".join(done.err.split())


def test_a_table_trains_and_is_gone_on_with(cli, run, drawn):
    assert (
        summary()["val_loss"] < metrics()[0]["val_loss"]
        and "values of load, made up" in Path("run/samples.txt").read_text()
    )
    assert json.loads(Path("run/config.json").read_text())["data"]["series"]["columns"] == ["load", "heat"]
    words = ("run", "--ahead", 5, "--samples", 8, "--quantiles", "0.25,0.75", "--seed", 3)
    first = ok(cli(MODULE, *words, "--json", "f.json", "--plot", "f.png"))
    assert "load, after 400 values" in first.out and "heat, after 400 values" in first.out
    found = json.loads(Path("f.json").read_text())["series"]
    assert [each["column"] for each in found] == ["load", "heat"] and found[0]["levels"] == [0.25, 0.75]
    low, high = np.array(found[0]["quantiles"])
    assert low.shape == (5,) and (low <= high).all() and len(found[0]["median"]) == 5
    assert imread("f.png").ndim == 3
    assert ok(cli(MODULE, *words)).out == first.out
    assert ok(cli(MODULE, *words[:-1], 4)).out != first.out
    one = ok(cli(MODULE, "run", "--column", "heat", "--ahead", 2, "--samples", 4)).out
    assert "heat, after 400" in one and "load" not in one


def test_a_backtest_stands_beside_naive_forecasts(cli, run, drawn):
    done = ok(cli(MODULE, "run", "--backtest", 4, "--ahead", 8, "--samples", 10, "--json", "b.json", "--plot", "b.png"))
    load, heat = json.loads(Path("b.json").read_text())["series"]
    assert load["season"] == 8 and load["windows"] == 4 and "a season of 8" in done.out
    assert load["season before"]["mae"] == pytest.approx(0, abs=1e-3) and load["last value"]["mae"] > 1
    assert 0 <= heat["model"]["coverage"] <= 1 and heat["model"]["mae"] > 0 and imread("b.png").ndim == 3
    assert load["last"]["values"] == 392
    as_told = ok(cli(MODULE, "run", "--backtest", 2, "--ahead", 8, "--samples", 4, "--season", 5)).out
    assert "a season of 5" in as_told


def test_the_bands_of_a_picture_have_the_colours_that_the_legend_gives_them(cli, run, drawn):
    levels = ("--quantiles", "0.05,0.2,0.5,0.8,0.95")
    ok(cli(MODULE, "run", "--column", "load", "--ahead", 8, "--samples", 20, *levels, "--plot", "f.png"))
    picture = (imread("f.png")[..., :3] * 255).round().astype(int)
    beside = picture.shape[1] * 7 // 8  # the legend

    def bands(part):
        colours, counts = np.unique(part.reshape(-1, 3), axis=0, return_counts=True)
        often = colours[counts > 100].tolist()
        return {tuple(each) for each in often if each[2] - each[0] > 20 and each[0] > 30}  # blue, lighter than the line

    legend = bands(picture[:, beside:])
    assert len(legend) == 2 and legend <= bands(picture[:, :beside])


def test_other_series_have_a_scale_of_their_own(cli, run, tmp_path):
    (tmp_path / "large.csv").write_text("x\n" + "\n".join(f"{1e6 + 100 * (n % 8)}" for n in range(100)) + "\n")
    ok(cli(MODULE, "run", "--data", "large.csv", "--ahead", 3, "--samples", 5, "--json", "f.json"))
    (found,) = json.loads(Path("f.json").read_text())["series"]
    assert found["column"] == "x" and min(min(row) for row in found["quantiles"]) > 1e6 - 2000
    piped = ok(cli(MODULE, "run", "--data", "-", "--ahead", 3, "--samples", 5, stdin=Path("large.csv").read_bytes()))
    assert "after 100 values" in piped.out


def test_a_column_that_two_tables_have_keeps_the_scale_of_each(cli, tmp_path):
    for name, level in (("first", 0), ("second", 1e6)):
        (tmp_path / f"{name}.csv").write_text(table(100, lambda n, load, heat, level=level: (level + n % 8, heat)))
    ok(cli("train.py", "--data", "first.csv", "second.csv", "--kind", "series", *QUICK, "--out", "run"))
    done = ok(cli(MODULE, "run", "--column", "load", "--ahead", 3, "--samples", 5, "--json", "f.json"))
    assert "in no bin" not in done.err
    first, second = json.loads(Path("f.json").read_text())["series"]
    assert np.max(first["quantiles"]) < 100 and np.min(second["quantiles"]) > 1e6 - 100


def test_a_constant_column_is_forecast_as_it_is(cli, tmp_path):
    (tmp_path / "c.csv").write_text("x\n" + "7.5\n" * 200)
    ok(cli("train.py", "--data", "c.csv", *("--kind", "series"), *QUICK, "--steps", 60, "--lr", 0.05, "--out", "run"))
    done = ok(cli(MODULE, "run", "--backtest", 3, "--ahead", 4, "--samples", 9))
    assert "MASE" in done.out and "-" in done.out
    ok(cli(MODULE, "run", "--ahead", 2, "--samples", 21, "--quantiles", "0.5", "--json", "f.json"))
    assert json.loads(Path("f.json").read_text())["series"][0]["median"] == [7.5, 7.5]


def test_interrupted_and_resumed_equals_never_interrupted(cli, days):
    words = ("--data", "days.csv", "--kind", "series", *QUICK)
    ok(cli("train.py", *words, "--out", "whole"))
    with at_call(Trainer, "step", 5, TERM):
        cli("train.py", *words, "--out", "run")
    assert not Path("run/summary.json").exists()
    ok(cli("train.py", "--resume", "--out", "run"))
    assert left(Path("run")) == left(Path("whole"))


def test_eval_only_says_what_training_said_and_takes_other_series(cli, run, tmp_path):
    assert evaluated(cli)["val_loss"] == pytest.approx(summary()["val_loss"], abs=1e-6)
    (tmp_path / "other.csv").write_text(table(200))
    assert evaluated(cli, "--data", "other.csv")["val_tokens"] == 2 * (20 + 1) - 1
    assert evaluated(cli, "--val-data", "other.csv")["val_tokens"] == 2 * (200 + 1) - 1
    assert evaluated(cli, "--val-data", "other.csv", "--column", "heat")["val_tokens"] == 200
    refused(cli("train.py", "--eval-only", "--out", "run", "--column", "heat"), "--column goes with --data")


def test_a_series_starts_from_a_run_of_series_and_learns_from_one(cli, run):
    Path("run").rename("first")
    series = ("--data", "days.csv", "--kind", "series")
    ok(cli("train.py", *series, *QUICK, "--init", "first", "--out", "second"))
    assert metrics("second")[0]["val_loss"] < metrics("first")[0]["val_loss"]
    ok(cli("train.py", *series, *QUICK, "--teacher", "first", "--out", "third"))
    for other in ("--init", "--teacher"):  # a series by its name alone
        ok(cli("train.py", "--data", "hours", *QUICK, "--eval-tokens", 200, other, "first", "--out", f"hours{other}"))
    ok(cli(MODULE, "third", "--ahead", 2, "--samples", 3))
    refused(cli("train.py", *series, *QUICK, "--bins", 32, "--init", "first", "--out", "x"), "--bins 32", "64")


@pytest.mark.parametrize("model", ["transformer", "mlp", "ngram"])
def test_any_family_goes_on_with_a_series(cli, days, model):
    sizes = {"transformer": ("--n-embd", 8, "--n-layer", 1, "--n-head", 2, "--context", 24, "--steps", 4)}
    sizes["mlp"] = ("--n-embd", 8, "--n-hidden", 8, "--context", 24, "--steps", 4)
    ok(
        cli(
            "train.py",
            "--data",
            "days.csv",
            "--kind",
            "series",
            "--model",
            model,
            *sizes.get(model, ()),
            "--out",
            "run",
        )
    )
    assert "MAE" in ok(cli(MODULE, "run", "--backtest", 2, "--ahead", 30, "--samples", 3)).out


def test_counts_mix_with_a_model_of_series(cli, days):
    ok(cli("train.py", "--data", "days.csv", "--kind", "series", *QUICK, "--mix-ngram", 2, "--out", "run"))
    assert "step" in ok(cli(MODULE, "run", "--ahead", 2, "--samples", 3)).out


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--tokenizer", "bpe:300"], ["--tokenizer bpe:300 is for text", "--bins"]),
        (["--bins", 3], ["--bins is 3", "at least 4"]),
        (["--bins", 257], ["--bins is 257"]),
        (["--column", "load,"], ["--column has an empty name"]),
        (["--text-column", "load"], ["--text-column"]),
        (["--val-data", "days.csv"], ["--val-data is for text"]),
        (["--objective", "masked", "--model", "transformer"], ["--objective masked", "series"]),
    ],
)
def test_what_means_nothing_to_series_is_refused(cli, days, flags, words):
    model = [] if "--model" in flags else ["--model", "gru"]
    words_before = ("--data", "days.csv", "--kind", "series", *model, "--context", 24, "--steps", 1)
    refused(cli("train.py", *words_before, *flags, "--out", "run"), *words)
    assert not Path("run").exists()


def test_the_flags_of_series_mean_nothing_to_text(cli, names):
    for flag, value in (("--column", "a"), ("--bins", 32)):
        refused(
            cli("train.py", "--data", "names.txt", flag, value, *QUICK, "--out", "run"),
            f"{flag} goes with --kind series",
        )


def test_other_commands_say_what_a_run_of_series_is_for(cli, run, tmp_path):
    words = "series of numbers", "python -m forecast"
    (tmp_path / "l.tsv").write_text("good\ta\nbad\tb\n" * 20)
    for command in (
        ("sample.py", "run"),
        ("-m serve", "run"),
        ("-m export", "run", "--to", "hf", "x"),
        ("-m explain", "run", "--what", "lens", "--text", "x"),
        ("-m finetune.classify", "--data", "l.tsv", "--init", "run", "--out", "y"),
    ):
        refused(cli(*command), *words)
    refused(cli("-m makemore.scratch.train", "--data", "days.csv", "--kind", "series", "--out", "z"), "--kind series")
    refused(cli("train.py", "--data", "l.tsv", "--init", "run", *QUICK, "--out", "z"), *words)
    assert not Path("z").exists()


def test_a_run_of_text_is_no_forecaster(cli, names):
    trained(cli, data="names.txt", kind="lines")
    refused(cli(MODULE, "run"), "run was trained on text", "--kind series")


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--ahead", 0], ["--ahead is 0"]),
        (["--samples", 0], ["--samples is 0"]),
        (["--backtest", 0], ["--backtest is 0"]),
        (["--season", 7], ["--season goes with --backtest"]),
        (["--backtest", 2, "--season", 999], ["--season 999 is longer"]),
        (["--backtest", 2, "--ahead", 41], ["the test part of 'load' has 40 values", "--ahead 41"]),
        (["--quantiles", "0.5,1"], ["--quantiles 0.5,1"]),
        (["--quantiles", "a"], ["--quantiles a"]),
        (["--plot", "x.svg"], ["--plot writes a PNG"]),
        (["--plot", "nowhere/x.png"], ["cannot write nowhere/x.png"]),
        (["--json", "nowhere/x.json"], ["cannot write nowhere/x.json"]),
        (["--column", "cold"], ["no column 'cold'", "load, heat"]),
        (["--data", "nothing.csv"], ["nothing.csv"]),
        (["--seed", -1], ["--seed is -1"]),
    ],
)
def test_what_cannot_be_forecast_is_refused(cli, run, flags, words):
    refused(cli(MODULE, "run", "--samples", 2, *flags), *words)


@pytest.mark.parametrize(
    "change",
    [
        {"columns": [], "means": [], "deviations": []},
        {"deviations": [0.0, 1.0]},
        {"means": [1e308, 1e308]},
        {"deviations": [1.0, 1e200]},
        {"means": [1.0]},
    ],
)
def test_a_stored_scale_that_is_none_is_refused(cli, run, change):
    path = run / "config.json"
    facts = json.loads(path.read_text())
    facts["data"]["series"] |= change
    path.write_text(json.dumps(facts))
    refused(cli(MODULE, "run", "--samples", 2), "config.json", "data.series is no scale")


def test_a_picture_of_many_series_says_how_many_it_shows(cli, tmp_path, drawn):
    rows = [
        "".join(f"c{i}," for i in range(10))[:-1],
        *(",".join(str((n + i) % 7) for i in range(10)) for n in range(50)),
    ]
    (tmp_path / "many.csv").write_text("\n".join(rows) + "\n")
    ok(cli("train.py", "--data", "many.csv", "--kind", "series", *QUICK, "--out", "run"))
    done = ok(cli(MODULE, "run", "--ahead", 2, "--samples", 2, "--plot", "f.png"))
    assert "the picture shows the first 8 of 10 series" in done.err


def test_a_series_that_moved_is_asked_for(cli, run, days):
    days.rename("there.csv")
    refused(cli(MODULE, "run"), "the series of this run", "--data")
    assert "load" in ok(cli(MODULE, "run", "--data", "there.csv", "--ahead", 1, "--samples", 2)).out


def test_the_bundled_series_is_the_same_every_time_and_has_its_seasons(tmp_path):
    values = hours.values()
    assert len(values) == hours.HOURS and hours.table().count("\n") == hours.HOURS + 1
    assert best_season(values[:20_000], 24) in (24, 168)
    assert (values[:3].tolist(), values[-1]) == ([51.0, 51.22, 51.16], 54.85)


def test_scores_are_those_worked_out_by_hand():
    truth = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert mean_absolute_error(truth + [[1, -1], [2, 0]], truth) == 1.0
    assert coverage(truth - 1, truth + [[0, -1], [5, 5]], truth) == 0.75
    # at 0.9: errors of 1 below cost 0.9 each, 1 above 0.1; twice, over the sum of 10
    assert weighted_quantile_loss((truth - 1)[None], np.array([0.9]), truth) == pytest.approx(2 * 4 * 0.9 / 10)
    assert weighted_quantile_loss((truth + 1)[None], np.array([0.9]), truth) == pytest.approx(2 * 4 * 0.1 / 10)
    both = np.stack([truth + 1, truth + 1])
    assert weighted_quantile_loss(both, np.array([0.5, 0.9]), truth) == pytest.approx((0.4 + 0.08) / 2)
    assert weighted_quantile_loss(both, np.array([0.5, 0.9]), truth * 0) is None
    assert naive_error(np.array([1.0, 2.0, 4.0, 8.0]), 2) == pytest.approx((3 + 6) / 2)
    assert naive_error(np.ones(9), 1) is None and naive_error(np.ones(3), 3) is None


def test_the_seasonal_naive_forecast_is_exact_on_a_periodic_series():
    pattern = np.array([3.0, 1, 4, 1, 5, 9, 2])
    series = np.tile(pattern, 40)
    assert best_season(series[:-21], 10) == 7
    assert np.array_equal(seasonal_naive(series[:-21], 21, 7), series[-21:])
    assert seasonal_naive(series, 3, 1).tolist() == [2, 2, 2]
