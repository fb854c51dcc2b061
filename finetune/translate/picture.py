"""A picture of where each token of a translation looks at in its source."""

from pathlib import Path

import torch

from data.errors import UserError
from data.tokenizers import Tokenizer
from engine.run.results import write_picture
from finetune.translate.material import source_ids
from makemore.base import LanguageModel
from makemore.seq2seq import Seq2Seq
from nanogpt.encoder_decoder import EncoderDecoder

MOST_LABELS = 80  # tokens along a side that are named


@torch.no_grad()
def weights_of(
    model: LanguageModel, tokenizer: Tokenizer, source: str, target: str, device: torch.device
) -> tuple[torch.Tensor, list[str], list[str]]:
    """How much the step that writes each token of `target`, and its end, looks at each token of `source`, and its end:
    (T, S), rows that sum to 1; and the tokens of both, in words. Raises UserError for a model without attention."""
    special, ids = tokenizer.special, source_ids(source, tokenizer)
    written = tokenizer.encode(target, "mask").tolist()
    state = model.start(torch.from_numpy(ids)[None].to(device), None)
    assert isinstance(model, Seq2Seq | EncoderDecoder)
    steps = model.context or len(written) + 1  # a translation that fills the context has no end
    weights = model.aligned(torch.tensor([[special.bos, *written][:steps]], device=device), state)[2]
    if weights is None:
        raise UserError("a run with --align none has no attention to draw")
    return (
        weights[0].cpu(),
        [*map(tokenizer.token_text, [*written, special.eos][:steps])],
        [*map(tokenizer.token_text, ids)],
    )


def draw_map(
    model: LanguageModel, tokenizer: Tokenizer, source: str, target: str, path: Path, device: torch.device
) -> None:
    """Draw these weights as a PNG: a row for each token of the translation, a column for each of the source. Raises
    UserError where it cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    weights, rows, columns = weights_of(model, tokenizer, source, target, device)
    T, S = weights.shape
    figure = Figure(figsize=(min(24, 1.5 + 0.24 * S), min(24, 1.2 + 0.24 * T)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(weights.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for axis, names in ((axes.xaxis, columns), (axes.yaxis, rows)):
        every = -(-len(names) // MOST_LABELS)
        axis.set_ticks(range(0, len(names), every), [_named(name) for name in names[::every]], parse_math=False)
    axes.set(xlabel="source", ylabel="translation")
    try:
        write_picture(path, figure)
    except OSError as error:
        raise UserError(f"cannot write --map {path}: {error.strerror}; name a file in a folder that is there") from (
            error
        )


def _named(token: str) -> str:
    """A token as a label; the font of the picture has ASCII alone for sure."""
    if token == " ":
        return "_"
    return token if token.isascii() else token.encode("unicode_escape").decode()
