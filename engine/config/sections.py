"""Every flag of `train.py`, typed and with its help; imports no torch, so that `--help` answers at once."""

from dataclasses import dataclass
from typing import ClassVar, Literal

MODELS = ("bigram", "ngram", "mlp", "cnn", "rnn", "lstm", "gru", "transformer")
OPTIMIZERS = ("sgd", "momentum", "adagrad", "rmsprop", "adam", "adamw", "muon")
Activation = Literal["sigmoid", "tanh", "relu", "leaky_relu", "gelu", "gelu_tanh", "silu", "relu2", "swiglu"]
SCHEDULES = ("constant", "linear", "cosine", "step", "wsd")


@dataclass
class Config:
    """Train (or evaluate) a character language model on any text.

    Without a flag: a Transformer on the bundled names. Defaults follow the model and the data set; the ones shown are
    those of this command line, so `train.py --model lstm --data shakespeare --help` shows that pair's.
    """

    # what to train, on what
    model: Literal["bigram", "ngram", "mlp", "cnn", "rnn", "lstm", "gru", "transformer"] = "transformer"
    """The family."""
    data: str | list[str] = "names"
    """names, names32k, shakespeare, stdlib, a text file, a folder of text files, or - for standard input; several are
    one text, in their order."""
    val_data: str | list[str] | None = None
    """The validation text, as --data. Without it: the last tenth of a stream, a tenth of the lines or documents by
    their hash."""
    kind: Literal["stream", "lines", "documents"] | None = None
    """Read the text as one stream, as lines, or as documents of several lines with blank lines between them (default:
    as the data set says; a file is a stream)."""
    separator: str | None = None
    """What stands between documents, instead of blank lines; \\n in it is a line end."""
    text_column: str | None = None
    """Of .tsv, .csv, .json and .jsonl files: the column or key whose texts are the lines or documents."""
    tokenizer: str = "char"
    """char (Unicode characters), byte (UTF-8), bpe:N (byte-level BPE trained on the text, N tokens), or gpt2."""
    encoding: str = "utf-8"
    """Encoding of text files, as Python names it."""
    preset: str | None = None
    """Defaults by name: makemore (its sizes and optimizer), nanogpt-cpu and nanogpt (nanoGPT's on Shakespeare, for a
    CPU and for a GPU), gpt2, modern (a Transformer's parts; modern is the default)."""

    # the model
    n_layer: int = 4
    """Layers."""
    n_head: int = 4
    """Attention heads."""
    n_kv_head: int | None = None
    """Key-value heads, fewer than --n-head for grouped attention (default: as many)."""
    n_embd: int = 64
    """Width of embeddings (and of the Transformer and the CNN throughout)."""
    n_hidden: int = 64
    """Hidden width of mlp, rnn, lstm and gru."""
    context: int | None = None
    """Window length in tokens (default: the longest line, at most 256, or the longest document, at most 64)."""
    order: int | None = None
    """Reach in tokens: mlp sees this many back; ngram counts up to this order (default: by held-out loss)."""
    counts: bool = False
    """Fit the bigram by counting, in closed form."""
    cells: Literal["fused", "written"] = "fused"
    """Recurrent layers of torch, or the same ones written out."""
    activation: Activation = "gelu"
    """Activation (swiglu: Transformer only)."""
    norm: Literal["none", "batch", "layer", "rms"] = "layer"
    """Normalisation."""
    positions: Literal["learned", "sinusoidal", "rope", "alibi"] = "learned"
    """How the Transformer knows where a token stands."""
    window: int | None = None
    """Sliding window: attend to this many last tokens only (default: to all of the context)."""
    qk_norm: bool = False
    """Normalise queries and keys."""
    tie_head: bool = True
    """Use the embedding table as the output head too."""
    bias: bool = True
    """Biases in the Transformer's layers."""
    weight_init: Literal["default", "torch", "normal", "xavier", "kaiming", "orthogonal"] = "default"
    """Initialisation of the weight matrices; default: GPT-2's for the Transformer, torch's for the others."""
    zero_init: bool = False
    """Start the Transformer's residual projections at zero."""
    hash_ngrams: int = 0
    """Add hashed embeddings of the last 2 to N tokens together to each token's (0: none)."""
    hash_rows: int = 4096
    """Rows for each length of these n-grams."""
    mix_ngram: int = 0
    """Mix with Kneser-Ney counts of this order of the training text, by a learned gate (0: none)."""
    dropout: float = 0.0
    """Dropout probability."""
    label_smoothing: float = 0.0
    """Label smoothing of the training loss."""

    # the training
    steps: int | None = 1000
    """Optimizer steps in all (with --minutes: no limit unless given)."""
    minutes: float | None = None
    """Train this long, over all resumes: steps and evaluations count, the one at the end comes on top. Whichever of
    --steps and --minutes comes first ends the training, and the schedule follows it; a resume is then not exact."""
    batch_size: int = 32
    """Windows, lines or documents a batch."""
    grad_accum: int = 1
    """Batches a step; the loss is that of their union."""
    carry_state: bool = False
    """Recurrent families on a stream: carry the state over consecutive batches (truncated backpropagation)."""
    optimizer: Literal["sgd", "momentum", "adagrad", "rmsprop", "adam", "adamw", "muon"] = "adamw"
    """Optimizer; muon takes the hidden matrices and leaves the rest to AdamW."""
    lr: float = 1e-3
    """Peak learning rate; under muon that of its AdamW part."""
    muon_lr: float = 0.02
    """Peak learning rate of Muon's matrices."""
    momentum: float = 0.9
    """Momentum of momentum and muon."""
    beta1: float = 0.9
    """First-moment decay of adam and adamw."""
    beta2: float = 0.99
    """Second-moment decay of adam and adamw, and rmsprop's."""
    weight_decay: float = 0.1
    """Weight decay of the matrices; biases, gains and embeddings have none."""
    grad_clip: float = 1.0
    """Largest gradient norm (0: no clipping)."""
    schedule: Literal["constant", "linear", "cosine", "step", "wsd"] = "cosine"
    """Learning rate over --steps or --minutes; step: a tenth after each third; wsd: constant, then down over the last
    fifth."""
    warmup: int = 100
    """Steps over which the learning rate first rises."""
    lr_floor: float = 0.1
    """Where linear, cosine and wsd end, as a fraction of --lr."""
    eval_interval: int = 250
    """Steps between evaluations, each of which also saves."""
    eval_tokens: int = 1_000_000
    """Most tokens of the validation text used; evenly spaced windows, always the same."""
    patience: int | None = None
    """Stop after this many evaluations without a better one."""
    seed: int = 1337
    """Seed of everything random."""

    # the machine
    device: str = "auto"
    """auto, cpu, cuda (or cuda:N) or mps."""
    threads: int | None = None
    """Threads that torch computes on (default: $OMP_NUM_THREADS or the cores; of a resume, as the run had). Another
    number may give other last bits; on a busy machine 1 is faster."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic; auto: bfloat16 on a GPU that has it, float32 elsewhere."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto: on for cuda, off elsewhere."""
    attention: Literal["auto", "triton", "torch"] = "auto"
    """Whose attention kernels the Transformer runs on; auto: Triton's where they were measured to win."""
    norm_kernel: Literal["auto", "triton", "torch"] = "auto"
    """Whose kernels layer and RMS norm run on; auto: as above."""
    log: Literal["none", "tensorboard", "wandb"] = "none"
    """Also log to TensorBoard or Weights & Biases, if installed."""

    # the run
    out: str | None = None
    """Run directory (default: runs/<model>-<data>-<number>)."""
    resume: bool = False
    """Go on with the run in --out."""
    overwrite: bool = False
    """Replace the run in --out."""
    eval_only: bool = False
    """Evaluate the run in --out, on its own data or the given one, and print one JSON line."""
    checkpoint: Literal["best", "last"] | None = None
    """Which checkpoint --resume (default last), --eval-only and --init (default best) take."""
    init: str | None = None
    """Start from the weights and the vocabulary of this run, or of GPT-2: gpt2:PATH, a folder in the Hub's layout."""
    extend_vocabulary: bool = False
    """With --init: give characters of the training text that the run does not know ids and rows of their own, after
    the old ones, each the mean row at first. The embedding table and the head are then trained under any --train."""
    config: str | None = None
    """Take defaults from this config.json."""

    task: ClassVar[str | None] = None
    """Which of `TASKS` a run of these flags is for; None: a language model and nothing else."""


# What a run may be fine-tuned for, as its config.json says.
TASKS = ("classify", "instruct")
# What makes a model what it is: --init takes these from the run it starts from.
MODEL_FIELDS = {
    "model", "n_layer", "n_head", "n_kv_head", "n_embd", "n_hidden", "context", "order", "counts", "cells",
    "activation", "norm", "positions", "window", "qk_norm", "tie_head", "bias", "tokenizer", "hash_ngrams", "hash_rows",
    "mix_ngram",
}  # fmt: skip
# What --resume may change, besides how the run is named and found; everything else has to be as it was.
CHANGEABLE = {
    "steps", "minutes", "eval_interval", "eval_tokens", "patience", "device", "threads", "compile", "attention",
    "norm_kernel", "log",
}  # fmt: skip
# Where a run's text is found: --resume takes another place where the text is the same.
WHERE_THE_TEXT_LIES = {"data", "val_data"}
# Whose kernels run: a matter of the machine, not of the model.
BACKENDS = ("attention", "norm_kernel")
# Flags about this call, not about the run: never stored.
CALL_ONLY = {"out", "resume", "overwrite", "eval_only", "predict", "checkpoint", "config", "preset"}
# What is done with the run in --out, instead of making a new one.
USES_RUN = {"resume", "eval_only", "predict"}
# What a model that is fitted by counting has no use for.
GRADIENT_ONLY = {
    "steps", "minutes", "batch_size", "grad_accum", "carry_state", "optimizer", "lr", "muon_lr", "momentum", "beta1",
    "beta2", "weight_decay", "grad_clip", "schedule", "warmup", "lr_floor", "eval_interval", "patience", "dtype",
    "compile", "label_smoothing", "log",
}  # fmt: skip

# Which of its own numbers each optimizer reads.
OPTIMIZER_FLAGS = {
    "sgd": set(), "momentum": {"momentum"}, "adagrad": set(), "rmsprop": {"beta2"}, "adam": {"beta1", "beta2"},
    "adamw": {"beta1", "beta2"}, "muon": {"beta1", "beta2", "momentum", "muon_lr"},
}  # fmt: skip
