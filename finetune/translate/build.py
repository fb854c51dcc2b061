"""From a configuration to an encoder and a decoder."""

from data.errors import UserError
from data.tokenizers import Tokenizer
from engine import runtime
from finetune.translate.options import TranslateConfig
from makemore.base import LanguageModel
from makemore.seq2seq import Seq2Seq
from nanogpt.encoder_decoder import EncoderDecoder


def build_translator(config: TranslateConfig, tokenizer: Tokenizer) -> LanguageModel:
    """A freshly initialised model of `config`. Raises UserError for sizes that do not go together, or do not fit into
    memory."""
    try:
        if config.model == "transformer":
            return EncoderDecoder(tokenizer.vocab_size, config.net, tokenizer.special)
        return Seq2Seq(tokenizer.vocab_size, config.net, tokenizer.special, config.model, config.tuning.align)
    except ValueError as error:
        raise UserError(str(error)) from error
    except (MemoryError, RuntimeError) as error:
        if not runtime.is_out_of_memory(error):
            raise
        raise UserError("a model of this size does not fit into memory; lower --n-embd, --n-hidden or --n-layer") from (
            error
        )
