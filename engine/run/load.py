"""Loading a run, or published weights, for use."""

from pathlib import Path

from data.errors import UserError
from data.program import command
from data.store import ROWS
from data.tokenizers import AFTER_EOS
from engine.backends import check_backends
from engine.config.checks import reads_series
from engine.config.flags import config_of
from engine.config.sections import Config
from engine.config.settings import make, replace
from engine.registry import build_model, layers
from engine.run import checkpoint
from engine.run.folder import command_of, read_facts, read_tokenizer, task_of
from engine.run.identity import check_identity, identity
from engine.run.run import Run
from engine.run.weights import check_finite, check_sizes, load_weights
from engine.runtime import choose_device
from makemore.base import LanguageModel
from nanogpt import pretrained


def load_pretrained(
    folder: Path, context: int | None, device: str = "auto", attention: str = "auto", norm_kernel: str = "auto"
) -> Run:
    """A GPT-2, Llama or Qwen3 from a folder in the Hub's layout, with its context cropped to `context` and its own
    tokenizer. Raises UserError for weights that are none of these, or a larger context than theirs."""
    settings = pretrained.read_settings(folder)
    settings["context"] = context or settings["context"]
    weights = pretrained.read_weights(folder, settings["context"])
    check_finite(weights, folder)
    tokenizer, rows, _ = pretrained.read_vocabulary(folder)  # last: it may be a download
    config = make(Config, settings | {"attention": attention, "norm_kernel": norm_kernel})
    target, _ = choose_device(device)
    check_backends(config, target)
    model = build_model(config, tokenizer.vocab_size, tokenizer.special)
    model.load_state_dict(pretrained.with_ids(weights, rows))
    facts = {"step": 0, "val_loss": None, "val_bits_per_char": None}
    start = AFTER_EOS if tokenizer.special.unk in tokenizer.encode("\n", "mask") else "\n"
    return Run(folder, model.to(target).eval(), tokenizer, config, start, facts, target)


def load_parent(config: Config) -> Run:
    """The run that `--init` names, or published weights with the context of `config`, on the CPU."""
    init = config.run.init
    assert init is not None
    if (weights := pretrained.folder_of(init)) is not None:
        return load_pretrained(weights, config.net.context, "cpu")
    return load_run(init, config.run.checkpoint or "best", "cpu", of_series=reads_series(config))


def load_writer(folder: str | Path, which: str = "best", device: str = "auto", of_series: bool = False) -> Run:
    """`load_run`, of a run that says what comes next. Raises UserError for one that fills gaps."""
    run = load_run(folder, which, device, of_series=of_series)
    run.check_writes()
    return run


def load_run(
    folder: str | Path, which: str = "best", device: str = "auto", attention: str = "auto", norm_kernel: str = "auto",
    of_series: bool = False,
) -> Run:  # fmt: skip
    """Load a run for use: its model in evaluation mode, tokenizer and configuration. `which`: 'best' or 'last'. Device
    and kernels are those given here, not those of the training. `folder` 'gpt2:PATH' or 'hf:PATH': published
    weights, or an export, from a folder in the Hub's layout. `of_series`: whether it may be one of series of numbers.

    Raises UserError, with the file, for one that is missing, damaged or of another run."""
    if (weights := pretrained.folder_of(str(folder))) is not None:
        return load_pretrained(weights, None, device, attention, norm_kernel)
    folder = Path(folder)
    facts = read_facts(folder)
    task = facts.get(task_of(facts) or "", {})
    if "labels" in task:
        raise UserError(f"{folder} labels texts and writes none: it is for {command_of(facts)}")
    if task.get("needs_source"):
        raise UserError(f"{folder} writes a text only after another one, its source: it is for {command_of(facts)}")
    config = replace(config_of(folder), attention=attention, norm_kernel=norm_kernel)
    if config.text.kind == "series" and not of_series:
        raise UserError(f"{folder} goes on with series of numbers and writes no text: it is for {command('forecast')}")
    tokenizer = read_tokenizer(folder, facts["vocab_size"])
    if not facts["data"]["start"] and config.text.kind not in ROWS:
        raise UserError(f"{folder / 'config.json'} is damaged: data.start, which an empty prompt begins with, is empty")
    target, _ = choose_device(device)
    check_backends(config, target)

    def build() -> LanguageModel:
        return build_model(config, tokenizer.vocab_size, tokenizer.special)

    try:
        check_identity(folder / which, identity(facts, tokenizer))
        check_sizes(build, layers(config), folder / which)
        model = build()
        metadata = load_weights(model, folder / which)
    except UserError as error:
        other = "last" if which == "best" else "best"
        way_out = f"; --checkpoint {other} takes the other one" if checkpoint.find(folder / other) else ""
        raise UserError(f"{error}{way_out}") from error
    start, template = facts["data"]["start"], task.get("template")
    return Run(folder, model.to(target).eval(), tokenizer, config, start, metadata, target, template)
