"""Mistakes on the command line: one readable message, exit code 2, nothing made."""

import json
from pathlib import Path

import pytest
import torch

from tests.helpers import (
    refused,
    words_of,
)

pytestmark = pytest.mark.usefixtures("names", "text")  # names.txt and text.txt stand where the commands run


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--model", "lstmm"], ["unknown model 'lstmm'", "Did you mean 'lstm'?"]),
        (["--optimizer", "adm"], ["unknown optimizer 'adm'", "Did you mean 'adam'?"]),
        (["--schedule", "cosin"], ["unknown schedule 'cosin'", "Did you mean 'cosine'?"]),
        (["--preset", "makemor"], ["unknown preset 'makemor'", "Did you mean 'makemore'?"]),
        (["--tokenizer", "chars"], ["unknown tokenizer 'chars'", "Did you mean 'char'?"]),
        (["--data", "shakespear"], ["'shakespear'", "Did you mean 'shakespeare'?"]),
        (["--device", "gpu"], ["unknown device 'gpu'", "Did you mean 'cpu'?"]),
        (["--device", "cpu:x"], ["--device cpu:x"]),
        (["--encoding", "utf9"], ["unknown encoding 'utf9'", "Did you mean 'utf-8'?"]),
        (["--encoding", "hex"], ["unknown encoding 'hex'"]),
        (["--encoding", "undefined"], ["unknown encoding 'undefined'"]),
        (["--kind", "line"], ["--kind", "'line'", "lines"]),
        (["--norm", "batchnorm"], ["--norm", "'batchnorm'", "batch"]),
        (["--optimzer", "adam"], ["--optimzer", "--optimizer"]),
        (["--leraning-rate", 0.1], ["--leraning-rate"]),
        (["-model", "lstm"], ["-model"]),
        (["names.txt"], ["names.txt"]),
        (["--steps"], ["--steps"]),
        (["--steps", "1e3"], ["--steps", "'1e3'"]),
        (["--steps", "many"], ["--steps", "'many'"]),
        (["--batch-size", 4.5], ["--batch-size", "'4.5'"]),
        (["--lr", "0,001"], ["--lr", "'0,001'"]),
        (["--steps", 0], ["--steps is 0", "at least 1"]),
        (["--steps", -5], ["--steps is -5"]),
        (["--batch-size", 0], ["--batch-size is 0"]),
        (["--context", 0], ["--context is 0"]),
        (["--context=-1"], ["--context is -1"]),
        (["--n-layer", 0], ["--n-layer is 0"]),
        (["--grad-accum", 0], ["--grad-accum is 0"]),
        (["--eval-interval", 0], ["--eval-interval is 0"]),
        (["--patience", 0], ["--patience is 0"]),
        *((["--minutes", value], [f"--minutes is {value}", "above 0"]) for value in ("0.0", "-1.0", "nan", "inf")),
        *((["--threads", value], [f"--threads is {value}", "from 1 to 1024"]) for value in (0, -2, 2000)),
        (["--minutes", "soon"], ["--minutes", "'soon'"]),
        (["--steps", "None"], ["--steps and --minutes are both None"]),
        (["--model", "ngram", "--minutes", 1], ["--minutes", "--model ngram"]),
        (["--model", "bigram", "--counts", "--minutes", 1], ["--minutes", "--counts"]),
        (["--warmup", -1], ["--warmup is -1"]),
        (["--seed", -1], ["--seed is -1"]),
        (["--seed", 10**20], ["--seed is 100000000000000000000"]),
        (["--lr", 0], ["--lr is 0"]),
        (["--lr", -0.1], ["--lr is -0.1"]),
        *(
            ([f"--{name}", value], [f"--{name} is {value}"])
            for name in ("lr", "weight-decay", "grad-clip", "lr-floor", "dropout", "label-smoothing", "beta1", "beta2")
            for value in ("nan", "inf")
        ),
        (["--dropout", 1.5], ["--dropout is 1.5", "below 1"]),
        (["--dropout", -0.1], ["--dropout is -0.1"]),
        (["--label-smoothing", 1], ["--label-smoothing is 1.0"]),
        (["--lr-floor", 5], ["--lr-floor is 5.0"]),
        (["--n-embd", 10, "--n-head", 3], ["n_embd 10", "not divisible", "n_head 3"]),
        (["--n-kv-head", 3], ["n_kv_head 3", "not divisible"]),
        (["--positions", "rope", "--n-embd", 12, "--n-head", 4], ["RoPE", "3", "even"]),
        (["--optimizer", "adamw", "--momentum", 0.5], ["--momentum", "--optimizer adamw"]),
        (["--model", "gru", "--muon-lr", 0.1], ["--muon-lr", "--optimizer adamw"]),
        (["--optimizer", "sgd", "--beta1", 0.5], ["--beta1", "--optimizer sgd"]),
        (["--schedule", "constant", "--lr-floor", 0.5], ["--lr-floor", "--schedule constant"]),
        (["--order", 3], ["--order", "--model transformer"]),
        (["--counts"], ["--counts", "--model transformer"]),
        (["--model", "lstm", "--n-head", 2], ["--n-head", "--model lstm", "--n-hidden"]),
        (["--model", "lstm", "--counts"], ["--counts means nothing to --model lstm;"]),
        (["--model", "lstm", "--activation", "relu"], ["--activation", "--model lstm"]),
        (["--model", "rnn", "--activation", "silu"], ["silu", "--cells written"]),
        (["--model", "mlp", "--activation", "swiglu"], ["swiglu", "Transformer"]),
        (["--model", "bigram", "--dropout", 0.1], ["--dropout", "--model bigram"]),
        (["--model", "ngram", "--lr", 0.1], ["--lr", "--model ngram"]),
        (["--model", "ngram", "--steps", 9, "--optimizer", "sgd"], ["--optimizer", "--steps", "--model ngram"]),
        (["--model", "bigram", "--counts", "--batch-size", 8], ["--batch-size", "--counts"]),
        (["--model", "mlp", "--carry-state"], ["--carry-state", "--model mlp"]),
        (["--model", "lstm", "--carry-state", "--kind", "lines"], ["--carry-state", "--kind stream"]),
        (["--checkpoint", "best"], ["--checkpoint", "--resume"]),
        (["--resume"], ["--resume"]),
        (["--eval-only"], ["--eval-only"]),
        (["--data", "no such file.txt"], ["'no such file.txt'"]),
        (["--data", "https://example.org/a.txt"], ["'https://example.org/a.txt'"]),
        (["--data", "once upon a time " * 300], ["no such file", "'once upon a time"]),
        (["--data", "~$names.txt"], ["'~$names.txt'"]),
        (["--data", ""], ["''"]),
        (["--data", "/dev/null"], ["/dev/null", "--data -"]),
        (["--val-data", "no such file.txt"], ["'no such file.txt'"]),
        (["--data", "-", "--val-data", "-"], ["standard input"]),
        (["--data", "-"], ["standard input is empty"]),
        (["--config", "nowhere.json"], ["nowhere.json", "No such file"]),
        (["--config", "text.txt"], ["it is not JSON"]),
        (["--config", "."], ["--config .", "directory"]),
        (["--init", "nowhere"], ["nowhere"]),
        (["--log", "wandb"], ["pip install wandb"]),
        (["--n-embd", 8 * 10**10], ["--n-embd is 80000000000", "at most 2,147,483,647"]),
        (["--n-embd", 2 * 10**9], ["memory"]),
    ],
    ids=words_of,
)
def test_a_wrong_flag_is_refused_before_anything_is_made(cli, flags, words):
    data = [] if "--data" in flags else ["--data", "text.txt"]
    out = [] if flags[0] in ("--resume", "--eval-only") else ["--out", "run"]
    refused(cli("train.py", *data, *out, *flags), *words)
    assert not Path("run").exists() and not Path("runs").exists()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"n_layers": 2}, ["n_layers", "Did you mean 'n_layer'?"]),
        ({"optimizer": "adm"}, ["optimizer", "'adm'"]),
        ({"schedule": "cosin"}, ["schedule", "'cosin'"]),
        ({"norm": "x"}, ["norm", "'x'"]),
        ({"compile": "maybe"}, ["compile", "'maybe'"]),
        ({"steps": "many"}, ["steps", "'many'"]),
        ({"n_layer": 2.5}, ["n_layer", "2.5"]),
        ({"lr": None}, ["lr", "None"]),
        ({"lr": -1.0}, ["lr", "-1.0"]),
        ({"model": 3}, ["model", "3"]),
        ({"data": 3}, ["data", "3"]),
        ({"data": []}, ["--data names no text"]),
        ([1, 2], ["configuration"]),
    ],
    ids=str,
)
def test_a_config_file_with_wrong_settings_is_refused(cli, tmp_path, settings, words):
    (tmp_path / "my.json").write_text(json.dumps(settings))
    refused(cli("train.py", "--out", "run", "--config", "my.json"), *words)
    assert not Path("run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there_is_refused(cli):
    refused(cli("train.py", "--data", "text.txt", "--out", "run", "--device", "cuda"), "--device cuda", "--device auto")
    assert not Path("run").exists()
