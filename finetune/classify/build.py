"""From a configuration to a classifier: its head on a body, class weights, and which weights are trained."""

import numpy as np
import torch

from data.errors import UserError
from engine.training.extend import train_tables
from engine.training.lora import add_lora
from finetune.classify.classifier import Classifier
from finetune.classify.options import ClassifyConfig, last_layers
from makemore.base import LanguageModel
from nanogpt.model import Transformer


def class_weights(power: float, labels: np.ndarray, n_classes: int) -> torch.Tensor:
    """The weight of each class in the loss, (n_classes,): its rarity in `labels` (examples,) to a power, 0 for equal
    weights, 1 for classes that weigh the same; with mean 1 over `labels`. Of texts with several labels these are the
    labels of all of them."""
    counts = np.maximum(np.bincount(labels, minlength=n_classes), 1)
    weights = counts**-power
    return torch.tensor(weights * counts.sum() / (weights * counts).sum(), dtype=torch.float32)


def build_classifier(
    config: ClassifyConfig, body: LanguageModel, weights: torch.Tensor, label_sets: torch.Tensor | None = None
) -> Classifier:
    """The classifier of `config` on `body`, with the weights that `--train` leaves alone frozen. `weights` and
    `label_sets`: as in `Classifier`."""
    tuning = config.tuning
    if not tuning.lm_weight and getattr(body, "lm_head", None) is not None:
        body.register_module("lm_head", None)  # predicts no token any more
    if tuning.look_ahead:
        assert isinstance(body, Transformer)  # `ClassifyConfig.check`
        body.see_ahead(tuning.look_ahead)
    model = Classifier(
        body, len(weights), pooling=tuning.pooling, ngrams=tuning.ngrams or 0,
        dropout=getattr(config.net, "dropout", 0.0), class_weights=weights,
        lm_weight=tuning.lm_weight,
        label_smoothing=config.net.label_smoothing, z_loss=config.net.z_loss, label_sets=label_sets,
    )  # fmt: skip
    if tuning.train == "lora":
        add_lora(body, tuning.lora_rank, tuning.lora_alpha, tuning.lora_layers)
    elif tuning.train != "all":
        freeze_all_but(body, last_layers(tuning.train) or 0)
    if config.run.extend_vocabulary:
        train_tables(body)
    return model


def freeze_all_but(body: LanguageModel, last: int) -> None:
    """Freeze `body` up to its last `last` layers; what follows the layers is trained too where any layer is."""
    body.requires_grad_(False)
    if not last:
        return
    stacks = [module for module in body.children() if isinstance(module, torch.nn.ModuleList)]
    depth = max(map(len, stacks), default=0)
    if last > depth:
        raise UserError(f"--train last:{last}, but the model has {depth} layer{'s' * (depth != 1)}")
    for module in body.children():
        if isinstance(module, torch.nn.ModuleList):
            for layer in module[len(module) - last :]:
                layer.requires_grad_(True)
        elif not any(isinstance(part, torch.nn.Embedding) for part in module.modules()):
            module.requires_grad_(True)
