"""The list of families: for each the dataclass of its flags, and where its model is. Imports no torch."""

from typing import NamedTuple

from makemore import config as small
from nanogpt.config import TransformerConfig


class Family(NamedTuple):
    config: type[small.ModelConfig]
    module: str  # in a checkout; imported where a model is built: it needs torch
    model: str  # the class there


FAMILIES = {
    "bigram": Family(small.BigramConfig, "makemore.bigram", "Bigram"),
    "ngram": Family(small.NGramConfig, "makemore.counts.ngram", "NGram"),
    "mlp": Family(small.MLPConfig, "makemore.mlp", "MLP"),
    "cnn": Family(small.CNNConfig, "makemore.cnn", "CNN"),
    "rnn": Family(small.RNNConfig, "makemore.recurrent", "RNN"),
    "lstm": Family(small.LSTMConfig, "makemore.recurrent", "LSTM"),
    "gru": Family(small.GRUConfig, "makemore.recurrent", "GRU"),
    "transformer": Family(TransformerConfig, "nanogpt.model", "Transformer"),
}
