"""`--init RUN --extend-vocabulary`: ids and weights for characters outside the vocabulary of that run."""

import torch
from torch import Tensor, nn

from data.errors import UserError
from data.tokenizers import N_SPECIALS, CharTokenizer, Tokenizer
from engine.config.sections import Config
from makemore.base import LanguageModel

SHOWN = 8  # new characters
TABLES = ("wte", "vte", "lm_head", "table")  # the modules with a row for each token, of all families


def check_extendable(config: Config, tokenizer: Tokenizer) -> None:
    """Raise UserError where `--extend-vocabulary` is given for a vocabulary that has every character."""
    if config.run.extend_vocabulary and not isinstance(tokenizer, CharTokenizer):
        raise UserError(
            f"--extend-vocabulary: the {tokenizer.name} vocabulary of {config.run.init} has every character already; "
            "leave it out"
        )


def tell_added(old: Tokenizer, new: Tokenizer) -> int:
    """Print the characters that `new` has and `old` has not, and return their number."""
    assert isinstance(old, CharTokenizer) and isinstance(new, CharTokenizer)  # `check_extendable` has passed
    added = new.alphabet[len(old.alphabet) :]
    shown = f" ({' '.join(map(repr, added[:SHOWN]))}{' ...' if len(added) > SHOWN else ''})" if added else ""
    print(f"{len(added):,} characters added to the vocabulary of {len(old.alphabet):,}{shown}", flush=True)
    return len(added)


def load_extended(model: LanguageModel, parent: LanguageModel) -> None:
    """Load the weights of `parent` into `model`, which has the same sizes except for a vocabulary that may be larger.
    The rows of a new id start as the mean of all characters' rows. Then buffers that training leaves alone (counts) are
    not loaded."""
    weights, added = parent.state_dict(), model.vocab_size - parent.vocab_size
    if added:
        state = model.state_dict()
        weights = {
            name: fresh if name.startswith(model.fixed) else _extended(weights[name], fresh.shape)
            for name, fresh in state.items()
        }
    model.load_state_dict(weights)


def train_tables(body: LanguageModel) -> None:
    """Make the tables with a row for each token trainable, whatever `--train` freezes: new rows start out equal."""
    for name in TABLES:
        if isinstance(table := getattr(body, name, None), nn.Module):
            table.requires_grad_(True)


def unknown_hint(config: Config, tokenizer: Tokenizer) -> str:
    """The hint at the flag for a message about unknown characters; empty where the flag would not help."""
    helps = config.run.init and not config.run.extend_vocabulary and isinstance(tokenizer, CharTokenizer)
    return "--extend-vocabulary gives those of the training text ids of their own" if helps else ""


def _extended(weight: Tensor, shape: torch.Size) -> Tensor:
    """`weight` extended to `shape`: new rows, and columns, are the mean of the characters'."""
    for dim, (old, new) in enumerate(zip(weight.shape, shape, strict=True)):
        if new > old:
            mean = weight.narrow(dim, N_SPECIALS, old - N_SPECIALS).mean(dim, keepdim=True)
            weight = torch.cat([weight, *[mean] * (new - old)], dim)
    return weight
