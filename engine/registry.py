"""From a configuration to a model."""

import importlib

from data.errors import UserError
from data.program import module
from data.tokenizers import Special
from engine import runtime
from engine.config.families import FAMILIES
from engine.config.sections import Config
from makemore.base import OURS, LanguageModel
from makemore.bigram import CountedBigram
from makemore.counts.mixture import Mixture


def model_class(config: Config) -> type[LanguageModel]:
    """The class that `config` asks for."""
    if config.model == "bigram" and config.net.is_counted:
        return CountedBigram
    family = FAMILIES[config.model]
    return getattr(importlib.import_module(module(family.module)), family.model)


def layers(config: Config) -> int | None:
    """How many layers the model of `config` has; None for a family without."""
    return getattr(config.net, "n_layer", None)


def build_model(config: Config, vocab_size: int, special: Special = OURS) -> LanguageModel:
    """A freshly initialised model for a vocabulary of this size, its specials being `special`. Raises UserError for
    sizes and options that do not go together."""
    try:
        model = model_class(config)(vocab_size, config.net, special)
        order = getattr(config.net, "mix_ngram", 0)
        count_inputs = getattr(config.net, "count_inputs", False)
        if count_inputs and not order:
            raise UserError("--count-inputs reads the counts of --mix-ngram; give both")
        return Mixture(model, order, count_inputs) if order else model
    except ValueError as error:
        raise UserError(str(error)) from error
    except (MemoryError, RuntimeError) as error:
        if not runtime.is_out_of_memory(error):
            raise
        raise UserError(
            "a model of this size does not fit into memory; lower --n-embd, --n-hidden or --n-layer"
        ) from error
