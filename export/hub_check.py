"""What was written for the Hub, read again: the weights, and by `transformers`, where it is installed, the logits."""

import importlib.util
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from nanogpt.model import Transformer

TOLERANCE = 1e-4  # largest difference of the logits, of the largest one where that is above 1
LENGTH = 32  # tokens at most that both read


def check_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    """Raise RuntimeError unless the safetensors files of `folder` hold `weights`."""
    missing = set(weights)
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in safetensors.torch.load_file(file).items():
            if not torch.equal(tensor, weights[name]):
                raise RuntimeError(f"{name} in {file} is not what was written")
            missing.discard(name)
    if missing:
        raise RuntimeError(f"{folder} lacks {sorted(missing)[0]}")


UNCOMPARED = "its weights were read again; with transformers installed its logits are compared, too"


def reloaded(kind: Any, folder: Path) -> Any:
    """The folder's model as this class of `transformers` loads it, with all weights and no other."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    theirs, loading = kind.from_pretrained(folder, output_loading_info=True)
    check_loading(loading, folder)
    return theirs


@torch.no_grad()
def check(model: Transformer, folder: Path) -> str:
    """How the folder was checked, in words. Raises RuntimeError where `transformers` computes something else from it
    than `model` does."""
    if importlib.util.find_spec("transformers") is None:
        return UNCOMPARED
    import transformers

    theirs = reloaded(transformers.AutoModelForCausalLM, folder)
    tokens = example(model, theirs.config.vocab_size)
    check_equal(theirs.eval()(tokens).logits, model(tokens).logits[..., : theirs.config.vocab_size], folder)
    return f"checked: its logits in transformers {transformers.__version__} are ours"


def example(model: Transformer, n_ids: int) -> Tensor:
    """Ids to compare two models on, (2, T), always the same."""
    assert model.context is not None
    generator = torch.Generator().manual_seed(0)
    return torch.randint(n_ids, (2, min(model.context, LENGTH)), generator=generator)


def check_loading(loading: dict[str, Any], folder: Path) -> None:
    """Raise RuntimeError where `transformers` looked for other weights than `folder` has."""
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loading[kind]:
            raise RuntimeError(f"transformers reports {kind} of {folder}: {sorted(map(str, loading[kind]))[0]}")


def check_equal(theirs: Tensor, ours: Tensor, folder: Path) -> None:
    """Raise RuntimeError where logits differ by more than rounding."""
    off = float((theirs - ours).abs().max())
    if not off <= TOLERANCE * max(1.0, float(ours.abs().max())):
        raise RuntimeError(f"what is in {folder} computes other logits than the run: off by {off:.2g}")
