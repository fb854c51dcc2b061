"""`--init RUN --extend-vocabulary`: ids and weights for characters that the run it starts from does not know."""

import torch
from torch import Tensor, nn

from data.errors import UserError
from data.tokenizers import N_SPECIALS, CharTokenizer, Tokenizer
from engine.config.sections import Config
from makemore.base import LanguageModel

SHOWN = 8  # new characters
TABLES = ("wte", "lm_head", "table")  # what has a row for each token, in every family


def check_extendable(config: Config, tokenizer: Tokenizer) -> None:
    """Raise UserError where `--extend-vocabulary` asks to extend a vocabulary that knows every character."""
    if config.run.extend_vocabulary and not isinstance(tokenizer, CharTokenizer):
        raise UserError(
            f"--extend-vocabulary: the {tokenizer.name} vocabulary of {config.run.init} has every character already; "
            "leave it out"
        )


def tell_added(before: Tokenizer, after: Tokenizer) -> int:
    """Print which characters `after` has besides those of `before`, and return how many."""
    added = after.alphabet[len(before.alphabet) :]
    shown = f" ({' '.join(map(repr, added[:SHOWN]))}{' ...' if len(added) > SHOWN else ''})" if added else ""
    print(f"{len(added):,} characters added to the vocabulary of {len(before.alphabet):,}{shown}", flush=True)
    return len(added)


def load_extended(model: LanguageModel, parent: LanguageModel) -> None:
    """Load the weights of `parent` into `model`, of the same sizes but perhaps a larger vocabulary: a new id starts as
    the mean of all characters'. What training leaves as it is, as counts, stays the model's own then."""
    weights, added = parent.state_dict(), model.vocab_size - parent.vocab_size
    if added:
        own = model.state_dict()
        weights = {
            name: fresh if name.startswith(model.fixed) else _extended(weights[name], fresh.shape)
            for name, fresh in own.items()
        }
    model.load_state_dict(weights)


def train_tables(body: LanguageModel) -> None:
    """Have the tables with a row for each token trained, whatever `--train` leaves alone: new rows are all alike."""
    for name in TABLES:
        if isinstance(table := getattr(body, name, None), nn.Module):
            table.requires_grad_(True)


def unknown_hint(config: Config, tokenizer: Tokenizer) -> str:
    """What a message about unknown characters says of the flag, where it would help."""
    could = config.run.init and not config.run.extend_vocabulary and isinstance(tokenizer, CharTokenizer)
    return "--extend-vocabulary gives those of the training text ids of their own" if could else ""


def _extended(weight: Tensor, shape: torch.Size) -> Tensor:
    """`weight` with as many rows, and columns, as `shape` has: new ones are the mean of the characters'."""
    for dim, (old, new) in enumerate(zip(weight.shape, shape, strict=True)):
        if new > old:
            mean = weight.narrow(dim, N_SPECIALS, old - N_SPECIALS).mean(dim, keepdim=True)
            weight = torch.cat([weight, *[mean] * (new - old)], dim)
    return weight
