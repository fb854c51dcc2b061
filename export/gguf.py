"""A Transformer as one GGUF file, which llama.cpp and what stands on it run.

llama.cpp computes by the name of the architecture, whatever else a file says: `gpt2` with GELU, `llama` and `qwen3`
with SwiGLU, `arcee` (a Llama with ReLU² that has no gate). The weights are those of `hub_weights`, all float32.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from data import gpt2
from data.errors import UserError
from data.gpt2 import GPT2Tokenizer
from data.tokenizers import Tokenizer
from export import gguf_tokenizer
from export.hub import are_untouched
from export.hub_chat import chat_template
from export.hub_weights import counterpart
from nanogpt.model import Transformer

GELUS = ("gelu", "gelu_tanh")
WAY_OUT = "--preset gpt2, and the defaults, train what llama.cpp computes"


def check_packages() -> None:
    """Raise UserError unless all that `save` needs is installed."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError("--to gguf needs gguf: pip install gguf")


def save(
    model: Transformer, tokenizer: Tokenizer, settings: dict[str, Any], path: Path, starts: str,
    template: str | None = None,
) -> str:  # fmt: skip
    """Write the file and read it again; returns its architecture. `settings` are the flags the model was made with,
    `starts` the special that a text begins with, or ''; `template`: that of its conversations, for a model that
    answers.

    Raises UserError for what llama.cpp has no operation for."""
    import gguf

    _refuse(settings)
    config, weights = counterpart(model, settings, WAY_OUT)
    arch = "arcee" if settings["activation"] == "relu2" else config["model_type"]
    n_ids = model.vocab_size
    if isinstance(tokenizer, GPT2Tokenizer) and starts != "<bos>" and are_untouched(model.wte.weight):
        n_ids = gpt2.VOCAB_SIZE
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(path.parent.name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    (_describe_gpt2 if arch == "gpt2" else _describe_llama)(writer, config)
    gguf_tokenizer.add(writer, tokenizer, n_ids, starts, _jinja(template) if template else None)
    written = tensors(arch, config, weights)
    written |= {name: table[:n_ids] for name, table in written.items() if len(table) == model.vocab_size}
    for name, tensor in written.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _check(path, written)
    return arch


def _check(path: Path, written: dict[str, np.ndarray]) -> None:
    """Raise RuntimeError unless the file has these tensors."""
    import gguf

    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    for name, array in written.items():
        if name not in found or not np.array_equal(found[name], array):
            raise RuntimeError(f"{name} in {path} is not what was written")


def tensors(arch: str, config: dict[str, Any], weights: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """The weights under llama.cpp's names and in its order: matrices (out, in), and of a Llama's queries and keys the
    two halves of each head, which are turned together, one after the other in pairs."""
    import gguf

    n_layer = config["n_layer"] if arch == "gpt2" else config["num_hidden_layers"]
    names = gguf.get_tensor_name_map(next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == arch), n_layer)
    found = {}
    for name, tensor in weights.items():
        if arch == "arcee" and ".gate_proj." in name:
            continue
        if arch == "gpt2" and tensor.dim() == 2 and ".h." in name:
            tensor = tensor.t()  # the Hub's GPT-2 has its matrices the other way round
        if arch in ("llama", "arcee") and (".q_proj." in name or ".k_proj." in name):
            tensor = _in_pairs(tensor, config["head_dim"])
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert written is not None, name
        found[written] = tensor.detach().float().cpu().contiguous().numpy()
    return found


def _in_pairs(rows: Tensor, head_size: int) -> Tensor:
    """Rows (heads * head_size, ...) whose head's halves are turned together -> those whose neighbours are."""
    halves = rows.unflatten(0, (-1, 2, head_size // 2))
    return halves.transpose(1, 2).flatten(0, 2)


def _refuse(settings: dict[str, Any]) -> None:
    """Raise UserError for an activation that the architecture has not; `counterpart` knows the rest."""
    activation, learned = settings["activation"], settings["positions"] == "learned"
    if learned and activation not in GELUS:
        raise UserError(
            f"--activation {activation}: llama.cpp has GELU alone with learned positions; --preset gpt2 trains it"
        )
    if settings["positions"] == "rope" and activation == "relu2":
        if settings["qk_norm"]:
            raise UserError(
                "llama.cpp has no ReLU² with QK-norm and would compute SiLU: train with --activation swiglu, or with "
                "--no-qk-norm --norm rms"
            )
        if settings["bias"]:
            raise UserError("llama.cpp has no biases with ReLU²: train with --no-bias, or with --activation swiglu")


def _describe_gpt2(writer: Any, config: dict[str, Any]) -> None:
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])


def _describe_llama(writer: Any, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _jinja(template: str) -> str:
    """llama.cpp puts `<bos>` in front of what the template writes by itself, and takes nothing out of it."""
    return chat_template(template, "", "<eos>", guarded=False)
