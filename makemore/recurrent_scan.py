"""A layer of an RNN or a GRU in training on a CPU: its loop over time as one call of compiled code."""

import torch.nn.functional as F
from torch import Tensor, nn

from kernels.step.scan import scan
from makemore.compiled import training_functions
from makemore.exact import is_exact, note
from makemore.tables import looked_up, pays

MOST_HIDDEN = 512  # of wider layers torch's products, which run on all threads, are as fast

note(nn.RNN, nn.GRU)


def scan_layer(
    layer: nn.Module, x: Tensor, first: Tensor, wte: nn.Embedding | None, tokens: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]] | None:
    """What `layer` makes of x (B, T, C) after the hidden vectors `first` (1, B, H): y (B, T, H), and the last hidden
    vectors (1, B, H), as torch has them but for the last bits. None where torch has to do it. `wte`: where x is nothing
    but the rows of this table for `tokens`."""
    if not _is_known(layer) or len(first[0, 0]) > MOST_HIDDEN or x.shape[1] == 0:
        return None
    weights = [layer.get_parameter(f"{part}_l0") for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    library = training_functions(x, first, *weights)
    if library is None:
        return None
    of_input, of_hidden, bias, bias_hidden = weights
    if wte is not None and tokens is not None and pays(wte, tokens):
        gates = looked_up(wte, tokens, of_input, bias)
    else:
        gates = F.linear(x, of_input, bias)
    y, last = scan(library, gates, first[0], of_hidden, bias_hidden)
    return y, (last[None],)


def _is_known(layer: nn.Module) -> bool:
    """Whether `layer` is one that the compiled code computes, unchanged."""
    return is_exact(layer, nn.GRU) or (is_exact(layer, nn.RNN) and layer.nonlinearity == "tanh")
