"""From a configuration to a model: the families by name, and which flags each has a use for."""

import inspect

from data.errors import UserError
from data.tokenizers import Special
from engine import runtime
from engine.config.checks import flag
from engine.config.sections import Config
from makemore.base import OURS, LanguageModel
from makemore.bigram import Bigram, CountedBigram
from makemore.cnn import CNN
from makemore.counts.mixture import Mixture
from makemore.counts.ngram import NGram
from makemore.mlp import MLP
from makemore.recurrent import GRU, LSTM, RNN
from nanogpt.model import Transformer

FAMILIES: dict[str, type[LanguageModel]] = {
    "bigram": Bigram, "ngram": NGram, "mlp": MLP, "cnn": CNN, "rnn": RNN, "lstm": LSTM, "gru": GRU,
    "transformer": Transformer,
}  # fmt: skip


def family(config: Config) -> type[LanguageModel]:
    """The class that `config` asks for."""
    return CountedBigram if config.model == "bigram" and config.counts else FAMILIES[config.model]


def is_counted(config: Config) -> bool:
    """Whether the model is fitted by counting rather than trained."""
    return hasattr(family(config), "fit")


def flags_of(cls: type) -> set[str]:
    """The flags a family has a use for: the keyword arguments of its constructor, and of its parent's where it passes
    the rest on."""
    found = set()
    for parent in cls.__mro__:
        if "__init__" in vars(parent):
            parameters = inspect.signature(parent.__init__).parameters.values()
            found |= {p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "special"}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return found


MODEL_FLAGS = set().union(*map(flags_of, FAMILIES.values())) | {"counts", "mix_ngram"}


def refuse_foreign_flags(config: Config, given: set[str]) -> None:
    """Raise UserError when a model flag was given that the chosen family has no use for."""
    has = flags_of(family(config)) | {"context"}
    has |= ({"counts"} if config.model == "bigram" else set()) | (set() if is_counted(config) else {"mix_ngram"})
    if foreign := sorted((given & MODEL_FLAGS) - has):
        counted = " --counts" if config.counts and config.model == "bigram" else ""
        raise UserError(
            f"{', '.join(map(flag, foreign))} means nothing to --model {config.model}{counted}; "
            f"it has: {', '.join(map(flag, sorted(has))) or 'no flags of its own'}"
        )
    if "carry_state" in given and config.model not in ("rnn", "lstm", "gru"):
        raise UserError(f"--carry-state means nothing to --model {config.model}; it is for rnn, lstm and gru")


def layers(config: Config) -> int | None:
    """How many layers the model of `config` has; None for a family without."""
    return config.n_layer if "n_layer" in flags_of(family(config)) else None


def build_model(config: Config, vocab_size: int, special: Special = OURS) -> LanguageModel:
    """A freshly initialised model for a vocabulary of this size, its specials being `special`. Raises UserError for
    sizes and options that do not go together."""
    cls = family(config)
    if config.activation == "swiglu" and config.model != "transformer":
        raise UserError(f"--activation swiglu is the Transformer's; --model {config.model} has the others")
    try:
        model = cls(vocab_size, special=special, **{name: getattr(config, name) for name in flags_of(cls)})
        return Mixture(model, config.mix_ngram) if config.mix_ngram else model
    except ValueError as error:
        raise UserError(str(error)) from error
    except (MemoryError, RuntimeError) as error:
        if not runtime.is_out_of_memory(error):
            raise
        raise UserError(
            "a model of this size does not fit into memory; lower --n-embd, --n-hidden or --n-layer"
        ) from error
