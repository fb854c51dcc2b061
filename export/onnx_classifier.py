"""A run of `finetune.classify` as an ONNX graph, of any family, with its labels."""

from pathlib import Path

from engine.run.folder import read_facts
from engine.run.results import read_summary
from export import card, onnx_folder, onnx_readme
from finetune.classify.labeller import load_labeller
from finetune.classify.measure import HEADLINES, headlines


def save(path: Path, which: str, folder: Path) -> str:
    """Write the classifier `path`; what to tell the user."""
    labeller = load_labeller(path, which, "cpu")
    tokenizer, context = labeller.tokenizer, labeller.config.net.context
    assert context is not None  # of a trained run
    config = {
        "family": labeller.config.model,
        "labels": labeller.labels,
        "context": context,  # tokens at which a text is cut
        "vocab_size": tokenizer.vocab_size,
        "specials": tokenizer.specials,
    }
    if labeller.thresholds is not None:  # a text has the labels that are at least as probable
        config["thresholds"] = labeller.thresholds.tolist()
    ports = onnx_folder.write(folder, labeller.model, config, tokenizer, "<bos>", context)
    measured = headlines(read_summary(path).get("test", {}))
    facts = card.facts_of(labeller.model, tokenizer, context, read_facts(path)["data"]["name"]) | {
        "labels": ", ".join(labeller.labels),
        **{f"test {HEADLINES[name]}": f"{value:.4f}" for name, value in measured.items()},
    }
    card.write(
        folder, f"classifier ({config['family']}) as ONNX,", facts | onnx_folder.size_of(folder),
        onnx_readme.of_a_classifier(config, ports), "text-classification", library="onnx",
    )  # fmt: skip
    return onnx_folder.told(folder, ports)
