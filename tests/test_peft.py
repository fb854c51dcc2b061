"""LoRA out to PEFT: the adapter on the exported base computes what the run does."""

import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from engine import load_run
from tests.conftest import NAMES
from tests.helpers import ok, quick, refused

MODULE = "-m finetune.instruct"
SIZE = {"n_layer": 2, "n_head": 4, "n_embd": 16, "context": 64}
GPT2 = ["--positions", "learned", "--norm", "layer", "--bias", "--no-qk-norm", "--activation", "gelu_tanh"]
LAYOUTS = {
    "qwen3": ([], "all", {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"}),
    "llama": (["--norm", "rms", "--activation", "swiglu", "--no-qk-norm", "--bias"], "attn", set("qkvo")),
    "gpt2": (GPT2, "attn.c_proj,mlp.c_fc", {"attn.c_proj", "mlp.c_fc"}),
    "gpt2, one block": (GPT2, "h.1.mlp", {"transformer.h.1.mlp.c_fc", "transformer.h.1.mlp.c_proj"}),
}


@pytest.fixture
def greetings(tmp_path):
    path = tmp_path / "greetings.json"
    items = [{"instruction": "Greet.", "input": name, "output": f"hi {name[0]}"} for name in NAMES]
    path.write_text(json.dumps(items))
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_peft_computes_what_the_run_does(cli, greetings, tmp_path, layout):
    flags, layers, targets = LAYOUTS[layout]
    size = [word for name, value in SIZE.items() for word in (f"--{name.replace('_', '-')}", value)]
    ok(cli(MODULE, "--data", greetings, *flags, *size, "--steps", 2, "--batch-size", 8, "--out", "run"))
    lora = ("--train", "lora", "--lora-rank", 3, "--lora-alpha", 12, "--lora-layers", layers, "--lr", 0.05)
    ok(cli(MODULE, "--data", greetings, "--init", "run", *lora, "--steps", 20, "--batch-size", 8, "--out", "tuned"))
    done = ok(cli("-m export", "tuned", "--to", "peft", "out"))
    assert (
        f"wrote out, an adapter of out/base, a {layout.split(',')[0]}" in done.out and "its logits in peft" in done.out
    )
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out/base").eval()
    ours, parent = load_run("tuned", device="cpu"), load_run("run", device="cpu")
    with torch.no_grad():
        tokens = torch.randint(6, ours.tokenizer.vocab_size, (2, 20))
        assert torch.allclose(base(tokens).logits, parent.model(tokens).logits, atol=1e-5)
        adapted = peft.PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
        logits = ours.model(tokens).logits
        assert torch.allclose(adapted(tokens).logits, logits, atol=1e-5)
        assert not torch.allclose(parent.model(tokens).logits, logits, atol=1e-3)  # it learned something
        assert torch.allclose(adapted.merge_and_unload()(tokens).logits, logits, atol=1e-5)
    about = json.loads((tmp_path / "out/adapter_config.json").read_text())
    short = {name.split(".")[-1] for name in about["target_modules"]}
    assert (about["r"], about["lora_alpha"]) == (3, 12)
    assert targets in (set(about["target_modules"]), short, {name[0] for name in short})
    kept = load_file(tmp_path / "out/adapter_model.safetensors")
    assert all(".lora_" in name for name in kept) and {t.shape[0] for n, t in kept.items() if "lora_A" in n} == {3}


def test_a_run_without_adapters_is_refused(cli, names, tmp_path):
    ok(cli("train.py", *quick("transformer", data=names, kind="lines")))
    refused(
        cli("-m export", "run", "--to", "peft", "out"), "run has no adapters: --to peft is for runs of --train lora"
    )
    assert not (tmp_path / "out").exists()
