"""What each small family can be asked for: one dataclass a family, which its model takes and the flags come from.

Imports no torch, so that `--help` answers at once. A field's type carries its range, and who may change it.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Literal, NamedTuple

from tyro.conf import arg

MAX_CONTEXT = 1 << 20  # tables of positions are as long
MAX_SIZE = 2**31 - 1


class Range(NamedTuple):
    """The numbers that a setting may be. `says` replaces the sentence that is made of the limits."""

    least: float
    most: float | None = None
    below: float | None = None
    above: float | None = None
    says: str = ""


class Mark(Enum):
    """What is done with a setting besides using it."""

    RESUMABLE = "--resume may change it"
    PLACE = "where the text lies: --resume takes another place of the same text"
    OWN = "of each run anew: --init does not take it over"
    TRAINING = "of no use to a model that counts"
    BACKEND = "whose kernels run: a matter of the machine"
    CALL = "about one call of the command: not stored"
    SETTLED = "None, auto, or on by default, until data and machine are known: a run has what was settled then"
    SHAPE = "makes a model what it is, as all flags of its family do: --init takes it over"
    RARE = "for few: --help shows it to who gives one of its kind"
    USES_RUN = "works on the run in --out instead of making one"


UNSET = arg(help_behavior_hint="")  # its help says what is done where it is not given
SIZE = Range(1, MAX_SIZE)
FRACTION = Range(0, below=1)
NOT_NEGATIVE = Range(0, below=float("inf"), says="at least 0 and finite")
POSITIVE = Range(0, above=0, below=float("inf"), says="above 0 and finite")
ORDER = Range(0, 16, says="from 1 to 16, or 0 for none")

Activation = Literal["sigmoid", "tanh", "relu", "leaky_relu", "gelu", "gelu_tanh", "silu", "relu2", "swiglu"]
Backend = Literal["auto", "triton", "torch"]


@dataclass
class ModelConfig:
    """What every family has."""

    context: Annotated[int | None, Range(1, MAX_CONTEXT), Mark.SETTLED, UNSET] = None
    """Window length in tokens (default: the longest line, at most 256, or the longest document, at most 64)."""

    @property
    def is_counted(self) -> bool:
        """Whether the model is fitted by counting rather than trained."""
        return False


@dataclass
class TrainedConfig(ModelConfig):
    """What every family has that is trained."""

    mix_ngram: Annotated[int, ORDER] = 0
    """Mix with Kneser-Ney counts of this order of the training text, by a learned gate (0: none)."""
    label_smoothing: Annotated[float, FRACTION, Mark.OWN, Mark.TRAINING] = 0.0
    """Label smoothing of the training loss."""
    z_loss: Annotated[float, NOT_NEGATIVE, Mark.OWN, Mark.TRAINING] = 0.0
    """Add this times the square of each target's log-sum-exp of logits to the training loss (PaLM: 1e-4)."""


@dataclass
class BigramConfig(TrainedConfig):
    """A table of logits, a row for each token that may come before."""

    counts: bool = False
    """Fit the bigram by counting, in closed form."""

    @property
    def is_counted(self) -> bool:
        return self.counts


@dataclass
class NGramConfig(ModelConfig):
    """Interpolated modified Kneser-Ney counts (Chen and Goodman 1998)."""

    order: Annotated[int | None, SIZE, UNSET] = None
    """Longest n-gram that is counted (default: chosen by held-out loss)."""

    @property
    def is_counted(self) -> bool:
        return True


@dataclass
class LayeredConfig(TrainedConfig):
    """What every family of several layers has."""

    n_layer: Annotated[int, SIZE] = 4
    """Layers."""
    n_embd: Annotated[int, SIZE] = 64
    """Width of the embeddings."""
    norm: Literal["none", "batch", "layer", "rms"] = "layer"
    """Normalisation."""
    weight_init: Annotated[Literal["default", "torch", "normal", "xavier", "kaiming", "orthogonal"], Mark.OWN] = (
        "default"
    )
    """Initialisation of the weight matrices; default: GPT-2's for the Transformer, torch's for the others."""
    hash_ngrams: Annotated[int, Range(0, 16, says="from 2 to 16, or 0 for none")] = 0
    """Add hashed embeddings of the last 2 to N tokens together to each token's (0: none)."""
    hash_rows: Annotated[int, SIZE] = 4096
    """Rows for each length of these n-grams."""
    count_inputs: bool = False
    """Add what the counts of --mix-ngram say of the next token, mapped, to each token's embedding."""
    dropout: Annotated[float, FRACTION, Mark.OWN] = 0.0
    """Dropout probability."""
    norm_kernel: Annotated[Backend, Mark.BACKEND, Mark.RESUMABLE, Mark.OWN] = "auto"
    """Whose kernels layer and RMS norm run on; auto: Triton's where they were measured to win."""


@dataclass
class BothWaysConfig(LayeredConfig):
    """What every family has that can read a text both ways."""

    objective: Annotated[Literal["next", "masked"], Mark.TRAINING, Mark.RARE] = "next"
    """What is learned: the next token, or, reading both ways, tokens that are hidden (Devlin et al. 2019, BERT)."""
    mask_rate: Annotated[float, Range(0, 0.9, above=0, says="above 0, and at most 0.9"), Mark.OWN, Mark.TRAINING,
                         Mark.RARE] = 0.3  # fmt: skip
    """With --objective masked: the part of the tokens that is hidden."""
    mask_span: Annotated[int, Range(1, 64), Mark.OWN, Mark.TRAINING, Mark.RARE] = 2
    """With --objective masked: how many tokens in a row are hidden, in the middle (Joshi et al. 2020, SpanBERT)."""

    @property
    def fills(self) -> bool:
        """Whether the model says what is hidden, instead of what comes next."""
        return self.objective == "masked"


@dataclass
class MLPConfig(LayeredConfig):
    """A window of embeddings through hidden layers (Bengio et al. 2003)."""

    order: Annotated[int | None, SIZE, UNSET] = None
    """How many tokens back it sees."""
    n_hidden: Annotated[int, SIZE] = 64
    """Hidden width."""
    activation: Activation = "gelu"
    """Activation."""


@dataclass
class CNNConfig(LayeredConfig):
    """Gated dilated causal convolutions (WaveNet, van den Oord et al. 2016)."""

    activation: Activation = "gelu"
    """Activation."""


@dataclass
class RecurrentConfig(BothWaysConfig):
    """Recurrent layers, each with its hidden vector."""

    n_hidden: Annotated[int, SIZE] = 64
    """Hidden width."""
    cells: Literal["fused", "written"] = "fused"
    """Recurrent layers of torch, or the same ones written out."""
    carry_state: Annotated[bool, Mark.OWN, Mark.TRAINING] = False
    """On a stream: carry the state over consecutive batches (truncated backpropagation)."""


@dataclass
class RNNConfig(RecurrentConfig):
    """Elman's recurrent network (1990)."""

    activation: Activation = "gelu"
    """Activation."""


@dataclass
class LSTMConfig(RecurrentConfig):
    """Long short-term memory (Hochreiter and Schmidhuber 1997)."""


@dataclass
class GRUConfig(RecurrentConfig):
    """Gated recurrent units (Cho et al. 2014)."""
