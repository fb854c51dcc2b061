"""Where a Transformer looks: the weights of each layer and head over a text."""

from torch import Tensor

from data.errors import UserError
from explain.found import Found, name_axis, new_figure, rounded, words
from explain.subject import Subject
from nanogpt.maps import attention_maps
from nanogpt.model import Transformer


def attention(subject: Subject, tokens: Tensor) -> Found:
    """The weights (L, H, T, T): each row is what a position looks at, and sums to 1. UserError for other families."""
    if not isinstance(subject.model, Transformer):
        raise UserError(f"{subject.name} is a {subject.family}, which has no attention; a transformer has")
    maps = attention_maps(subject.model, tokens)
    names, (L, H) = words(subject.tokenizer, tokens.tolist()), maps.shape[:2]
    figure = new_figure(1 + 2.6 * H, 0.6 + 2.6 * L)
    grid = figure.subplots(L, H, sharex=True, sharey=True, squeeze=False)
    for layer, row in enumerate(grid):
        for head, axes in enumerate(row):
            axes.imshow(maps[layer, head].numpy(), cmap="Blues", vmin=0, vmax=1)
            axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=9)
            name_axis(axes.xaxis, names)
            name_axis(axes.yaxis, names)
            axes.tick_params(length=0)
    said = [f"{L} layers of {H} heads; at the last token, what each looks at most:"]
    for layer in range(L):
        most = maps[layer, :, -1].argmax(-1).tolist()
        said.append(f"  layer {layer + 1}: " + ", ".join(f"{names[place]!r} (place {place})" for place in most))
    return Found({"tokens": names, "weights": rounded(maps.tolist())}, figure, "\n".join(said))
