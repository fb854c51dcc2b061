"""The flags that every family has, typed and with their help, in sections that tasks compose; imports no torch.

A family's own are in makemore/config.py and nanogpt/config.py. The defaults here are those of no model and no text:
engine/config/presets.py and each task say what a command line gets.
"""

import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from tyro.conf import arg

from data.series.bins import LEAST_BINS, MOST_BINS
from engine.config.families import FAMILIES
from makemore.config import FRACTION, NOT_NEGATIVE, POSITIVE, UNSET, Mark, ModelConfig, Range

MAX_SEED = 2**63 - 1
MAX_THREADS = 1024  # more than any machine has processors
COUNT = Range(1, below=2**63)
Net = TypeVar("Net", bound=ModelConfig)


@dataclass
class Text:
    """The text, and how it is read."""

    data: Annotated[str | list[str], Mark.PLACE] = "names"
    """names, names32k, shakespeare, stdlib, hours, text8, enwik8, ptb-char, tinystories, openwebtext, fineweb-sample,
    a file, a folder, a pattern of paths in quotes, or - for standard input; several are one text, in their order."""
    val_data: Annotated[str | list[str] | None, Mark.PLACE, UNSET] = None
    """The validation text, as --data. Without it: the last tenth of a stream, a tenth of the lines or documents by
    their hash."""
    kind: Annotated[Literal["stream", "lines", "documents", "series"] | None, Mark.SETTLED, UNSET] = None
    """Read it as one stream, as lines, as documents of several lines with blank lines between them, or as
    the series of numbers of a CSV file (default: as the data set says; a file is a stream)."""
    separator: Annotated[str | None, UNSET] = None
    """What stands between documents, instead of blank lines; \\n in it is a line end. With --kind stream <eos> follows
    each of them."""
    text_column: Annotated[str | None, UNSET] = None
    """Of tables (.parquet, .jsonl, .json, .csv, .tsv, JSON lines by any name): the column or key whose texts are the
    lines or documents, or with --kind stream end in <eos> each (default: text, of the first three, in a stream)."""
    column: Annotated[str | None, Mark.RARE, UNSET] = None
    """Of series: the columns, by name or number, with commas between them (default: all that are numbers)."""
    bins: Annotated[int | None, Range(LEAST_BINS, MOST_BINS), Mark.RARE, UNSET] = None
    """Of series: how many values there are, each a token (default: 64); they reach four deviations from the mean."""
    tokenizer: str = "char"
    """char (Unicode characters), byte (UTF-8), bpe:N (byte-level BPE trained on the text, N tokens), or gpt2."""
    bpe_sample: Annotated[str | None, UNSET] = None
    """With bpe:N, learn from so much of the training text, evenly spread, as 500MB or 1GB (default: from all of it)."""
    encoding: str = "utf-8"
    """Encoding of text files, as Python names it."""
    eval_tokens: Annotated[int, COUNT, Mark.RESUMABLE] = 1_000_000
    """Most tokens of the validation text used; evenly spaced windows, always the same."""


@dataclass
class Optim:
    """The training: how long, on how much at once, by which optimizer."""

    steps: Annotated[int | None, COUNT, Mark.RESUMABLE] = 1000
    """Optimizer steps in all (with --minutes: no limit unless given)."""
    minutes: Annotated[float | None, POSITIVE, Mark.RESUMABLE, UNSET] = None
    """Train this long, over all resumes: steps and evaluations count, the one at the end comes on top. Whichever of
    --steps and --minutes comes first ends the training, and the schedule follows it; a resume is then not exact."""
    batch_size: Annotated[int, Range(1, 2**31 - 1)] = 32
    """Windows, lines or documents a batch."""
    grad_accum: Annotated[int | Literal["auto"], COUNT, Mark.SETTLED] = 1
    """Batches a step; the loss is that of their union. auto: a step has the rows of one batch of --batch-size, cut into
    the fewest that fit into memory; a run keeps what was found."""
    optimizer: Literal["sgd", "momentum", "adagrad", "rmsprop", "adam", "adamw", "muon"] = "adamw"
    """Optimizer; muon takes the hidden matrices and leaves the rest to AdamW."""
    lr: Annotated[float, POSITIVE] = 1e-3
    """Peak learning rate; under muon that of its AdamW part."""
    muon_lr: Annotated[float, POSITIVE] = 0.02
    """Peak learning rate of Muon's matrices."""
    momentum: Annotated[float, FRACTION] = 0.9
    """Momentum of momentum and muon."""
    beta1: Annotated[float, FRACTION] = 0.9
    """First-moment decay of adam and adamw."""
    beta2: Annotated[float, FRACTION] = 0.99
    """Second-moment decay of adam and adamw, and rmsprop's."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.1
    """Weight decay of the matrices; biases, gains and embeddings have none."""
    grad_clip: Annotated[float, NOT_NEGATIVE] = 1.0
    """Largest gradient norm (0: no clipping)."""
    schedule: Literal["constant", "linear", "cosine", "step", "wsd"] = "cosine"
    """Learning rate over --steps or --minutes; step: a tenth after each third; wsd: constant, then down over the last
    fifth."""
    warmup: Annotated[int, NOT_NEGATIVE] = 100
    """Steps over which the learning rate first rises."""
    lr_floor: Annotated[float, Range(0, 1, says="from 0 to 1")] = 0.1
    """Where linear, cosine and wsd end, as a fraction of --lr."""
    eval_interval: Annotated[int, COUNT, Mark.RESUMABLE] = 250
    """Steps between evaluations, each of which also saves."""
    save_interval: Annotated[int | None, COUNT, Mark.RESUMABLE, UNSET] = None
    """Steps between saves, in place of one at each evaluation: what a crash can lose. The best weights are saved when
    they are found, and everything at the end and on a signal."""
    patience: Annotated[int | None, COUNT, Mark.RESUMABLE, UNSET] = None
    """Stop after this many evaluations without a better one."""

    @property
    def micro_batches(self) -> int:
        """--grad-accum as a number: batches a step; 1 until auto is settled."""
        return 1 if self.grad_accum == "auto" else self.grad_accum


@dataclass
class Machine:
    """The machine that computes."""

    device: Annotated[str, Mark.RESUMABLE] = "auto"
    """auto, cpu, cuda (or cuda:N) or mps."""
    threads: Annotated[
        int | None, Range(1, MAX_THREADS, says=f"from 1 to {MAX_THREADS}"), Mark.RESUMABLE, Mark.SETTLED
    ] = None
    """Threads that torch computes on (default: $OMP_NUM_THREADS or the cores; of a resume, as the run had). Another
    number may give other last bits; on a busy machine 1 is faster."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], Mark.TRAINING, Mark.SETTLED] = "auto"
    """Arithmetic of matrix products; auto: bfloat16 on a GPU that has it, and on a CPU where a large model is faster in
    it, which is tried; a run keeps what it began with."""
    compile: Annotated[Literal["auto", "on", "off"], Mark.RESUMABLE, Mark.TRAINING] = "auto"
    """torch.compile; auto: on for cuda, off elsewhere."""
    cuda_graph: Annotated[Literal["auto", "on", "off"], Mark.RESUMABLE, Mark.TRAINING] = "auto"
    """Replay the training step as CUDA graphs, captured once: a small model on a GPU waits for each operation to be
    launched. auto: off, until a GPU has measured it."""
    shard: Annotated[bool, Mark.RESUMABLE, Mark.TRAINING] = False
    """Under torchrun: divide weights, gradients and the optimizer's state among the processes, for models that are too
    large to be whole in each (FSDP2)."""
    log: Annotated[Literal["none", "tensorboard", "wandb"], Mark.RESUMABLE, Mark.TRAINING] = "none"
    """Also log to TensorBoard or Weights & Biases, if installed."""


@dataclass
class RunFlags:
    """The run directory, and what the run starts from."""

    out: Annotated[str | None, Mark.CALL, UNSET] = None
    """Run directory (default: runs/<model>-<data>-<number>)."""
    resume: Annotated[bool, Mark.CALL, Mark.USES_RUN] = False
    """Go on with the run in --out."""
    go_on: Annotated[bool, Mark.CALL] = False
    """Start the run in --out, or go on with it where it is there: the same command line again and again."""
    overwrite: Annotated[bool, Mark.CALL] = False
    """Replace the run in --out."""
    eval_only: Annotated[bool, Mark.CALL, Mark.USES_RUN] = False
    """Evaluate the run in --out, on its own data or the given one, and print one JSON line."""
    checkpoint: Annotated[Literal["best", "last"] | None, Mark.CALL, UNSET] = None
    """Which checkpoint --resume (default last), --eval-only and --init (default best) take."""
    init: Annotated[str | None, UNSET] = None
    """Start from the weights and the vocabulary of this run, or published ones: gpt2:PATH or hf:PATH, in the
    Hub's layout."""
    extend_vocabulary: Annotated[bool, Mark.SETTLED] = False
    """With --init: give characters of the training text that the run does not know ids and rows of their own, after
    the old ones, each the mean row at first. The embedding table and the head are then trained under any --train."""
    teacher: Annotated[str | None, Mark.OWN, Mark.TRAINING, Mark.RESUMABLE, Mark.RARE, UNSET] = None
    """Learn from what this run says of each token, too (distillation), in its vocabulary."""
    teacher_weight: Annotated[float, Range(0, 1, says="from 0 to 1"), Mark.OWN, Mark.TRAINING, Mark.RARE] = 0.9
    """How much of the loss is the teacher's part."""
    teacher_temperature: Annotated[float, POSITIVE, Mark.OWN, Mark.TRAINING, Mark.RARE] = 1.0
    """What divides the logits of both in the teacher's part: above 1, unlikely tokens count more."""
    seed: Annotated[int, Range(0, MAX_SEED, says=f"from 0 to {MAX_SEED}")] = 1337
    """Seed of everything random."""
    watch: Annotated[int | None, Range(0, 65535, says="from 0 to 65535"), Mark.CALL, Mark.TRAINING, UNSET] = None
    """Show the loss curves of this run, and of those beside it, on a page at this port while it trains (0: a free
    one)."""
    profile: Annotated[int | None, Range(1, 1000), Mark.CALL, Mark.TRAINING, UNSET] = None
    """Record this many steps, after a few to warm up, into trace.json.gz in the run directory, to open at
    ui.perfetto.dev, and print the operations that take most."""
    config: Annotated[str | None, Mark.CALL, UNSET] = None
    """Take defaults from this config.json."""
    preset: Annotated[str | None, Mark.CALL, UNSET] = None
    """Defaults by name: makemore (its sizes and optimizer), nanogpt-cpu and nanogpt (nanoGPT's on Shakespeare, for a
    CPU and for a GPU), gpt2, modern (a Transformer's parts; modern is the default), gpt2-124m and gpt2-124m-fast
    (whole trainings of 124 million parameters, for one to eight GPUs)."""

    @property
    def path(self) -> Path:
        """The run directory, where --out had to be given."""
        assert self.out is not None
        return Path(self.out)


@dataclass
class Config(Generic[Net]):
    """Train (or evaluate) a character language model on any text.

    Without a flag: a Transformer on the bundled names. Defaults follow the model and the data set; the ones shown are
    those of this command line, so `--model lstm --data shakespeare --help` shows that pair's flags.
    """

    model: Annotated[str, arg(metavar=f"{{{','.join(FAMILIES)}}}")]
    """The family."""
    text: Text
    net: Annotated[Net, arg(name="model")]
    optim: Annotated[Optim, arg(name="training")]
    machine: Machine
    run: RunFlags

    task: ClassVar[str | None] = None  # the key of `config.json` under which a run says what it is for besides
    program: ClassVar[str] = "train"  # the name of the command (data/program.py)
    fixed: ClassVar[dict[str, Any]] = {}  # flags of families that mean nothing here, and the value they have
    apart: ClassVar[frozenset[str]] = frozenset()  # flags without which a command line is for another kind of run
    no_init: ClassVar[str | None] = None  # the word after --init that means none
    own_parents: ClassVar[bool] = False  # whether --init takes runs of this command alone

    @classmethod
    def usual(cls, wanted: dict[str, Any]) -> dict[str, Any]:
        """The task's own defaults. `wanted`: what is known before the parse, from --config, --model, --data and --init,
        what is on or off, and the shape of the run that it starts from."""
        return {}

    def check(self, explicit: set[str]) -> None:
        """Raise UserError for what cannot be, or does not go together, in the task's own sections."""


def choices(section: type, name: str) -> tuple[str, ...]:
    """What a flag with a fixed list of values may be."""
    return typing.get_args(typing.get_type_hints(section)[name])


OPTIMIZERS = choices(Optim, "optimizer")
SCHEDULES = choices(Optim, "schedule")
# Which of its own numbers each optimizer reads.
OPTIMIZER_FLAGS: dict[str, set[str]] = {
    "sgd": set(), "momentum": {"momentum"}, "adagrad": set(), "rmsprop": {"beta2"}, "adam": {"beta1", "beta2"},
    "adamw": {"beta1", "beta2"}, "muon": {"beta1", "beta2", "momentum", "muon_lr"},
}  # fmt: skip
