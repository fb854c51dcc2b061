"""A language model with a classification head: what it read is pooled into one vector, and that into class logits.

Radford et al., "Improving Language Understanding by Generative Pre-Training", 2018, also for the auxiliary language
modelling loss; beside it a bag of n-grams (Joulin et al., "Bag of Tricks for Efficient Text Classification", 2016), as
in Cheng et al., "Wide & Deep Learning", 2016. Padding is on the right and never seen: causal models need no mask.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.batches import IGNORE
from engine.evaluate import in_evaluation_mode
from makemore.base import LanguageModel, Output, State
from makemore.hashing import longer, row_of
from makemore.layers import here, not_padding, widened

POOLINGS = ("last", "mean", "max")
BUCKETS = 1 << 16  # rows that n-grams are hashed into
BAG_WIDTH = 64
BAG_DROPOUT = 0.5  # of whole n-grams: less, and the bag learns the training texts by heart


class Classifier(nn.Module):
    """tokens (B, T) -> features of `body` (B, T, C) -> pooled (B, C), a bag of n-grams beside -> logits (B, n_classes).

    `targets` (B, T) hold a row's label at its last real token, IGNORE elsewhere, so that a batch says its own lengths.
    `class_weights` (n_classes,) multiply the loss of each class; `lm_weight` times the mean loss of predicting each
    next token is added while training.

    With `label_sets` (sets, n) a text has a set of labels: the target is the row of its classes there, -1 where it has
    fewer. Each class is then a sigmoid of its own, and the loss of a text is the binary cross-entropy summed over the
    classes: the NLL of its set. The text has those labels that are at least as probable as `thresholds` (n_classes,),
    which are stored with the weights."""

    class_weights: Tensor | None
    label_sets: Tensor | None
    thresholds: Tensor | None

    def __init__(
        self,
        body: LanguageModel,
        n_classes: int,
        *,
        pooling: str = "last",
        ngrams: int = 0,
        dropout: float = 0.0,
        class_weights: Tensor | None = None,
        lm_weight: float = 0.0,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        label_sets: Tensor | None = None,
    ):
        super().__init__()
        self.body, self.pooling, self.lm_weight = body, pooling, lm_weight
        self.label_smoothing, self.z_loss = label_smoothing, z_loss
        self.total: Callable[[Tensor], Tensor] = here  # of several processes that divide a batch: the sum over all
        self.dropout = nn.Dropout(dropout)
        self.bag = NGramBag(ngrams) if ngrams else None
        self.head = nn.Linear(feature_width(body) + BAG_WIDTH * bool(ngrams), n_classes, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.register_buffer("label_sets", label_sets, persistent=False)
        self.register_buffer("thresholds", None if label_sets is None else torch.full((n_classes,), 0.5))

    def forward(
        self, tokens: Tensor, targets: Tensor, state: State | None = None, *, want_logits: bool = True
    ) -> Output:
        """Logits (B, n_classes), and the summed loss over the rows that have a label. Of every row the target of its
        last token has to be set, if only to 0."""
        labelled = targets != IGNORE  # (B, T), one a row
        read = not_padding(labelled)  # (B, T)
        hidden, state = self.body.hidden(tokens, None, read)
        features = self.dropout(self._pool(hidden, labelled, read))
        if self.bag is not None:
            features = torch.cat([features, self.bag(tokens, read)], 1)
        logits = self.head(features)  # (B, n_classes)
        labels = targets.amax(1)  # IGNORE is less than any
        nll_sum = self._class_loss(widened(logits), labels)
        if self.training and self.lm_weight:
            nll_sum = nll_sum + self.lm_weight * self._language_loss(tokens, hidden, read, labelled)
        return Output(logits if want_logits else None, nll_sum, labelled.sum(), state)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Those of the classes (B, n_classes): of each, or of each instead of all others."""
        return logits.softmax(-1) if self.label_sets is None else logits.sigmoid()

    def _class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        weights = None if self.class_weights is None else self.class_weights.type_as(logits)
        smoothing = self.label_smoothing if self.training else 0.0
        if self.label_sets is not None:
            has_label = multi_hot(self.label_sets[labels.clamp_min(0)], logits.shape[1]).type_as(logits)
            expected = has_label * (1 - smoothing) + 0.5 * smoothing
            # A weight is that of the texts that have the label, as in the other loss.
            nll = F.binary_cross_entropy_with_logits(logits, expected, pos_weight=weights, reduction="none").sum(1)
            return nll.masked_fill(labels == IGNORE, 0.0).sum()
        nll_sum = F.cross_entropy(
            logits, labels, weights, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing
        )
        if self.training and self.z_loss:
            nll_sum = nll_sum + self.z_loss * logits.logsumexp(-1)[labels != IGNORE].square().sum()
        return nll_sum

    def output_layers(self) -> list[nn.Module]:
        """As of a LanguageModel: what makes the class logits, and what makes those of the next token."""
        return [self.head, *self.body.output_layers()]

    def _pool(self, hidden: Tensor, labelled: Tensor, read: Tensor) -> Tensor:
        if self.pooling == "last":
            return hidden[torch.arange(hidden.shape[0], device=hidden.device), labelled.int().argmax(1)]
        if self.pooling == "max":
            return hidden.masked_fill(~read[..., None], -torch.inf).amax(1)
        return (hidden * read[..., None]).sum(1) / read.sum(1, keepdim=True)

    def _language_loss(self, tokens: Tensor, hidden: Tensor, read: Tensor, labelled: Tensor) -> Tensor:
        """The mean loss over next tokens, times the number of rows, as the class losses are a sum over rows."""
        follows = read[:, 1:]
        nll = self.body.nll(hidden[:, :-1], tokens[:, 1:].masked_fill(~follows, IGNORE))
        return nll * self.total(labelled.sum()) / self.total(follows.sum()).clamp_min(1)


class NGramBag(nn.Module):
    """tokens (B, T), of which those count where `read` (B, T) -> the embeddings of all their 1- to n-grams, summed, and
    over the root of how many: (B, BAG_WIDTH). In training a random half of the n-grams is left out."""

    def __init__(self, n: int):
        super().__init__()
        self.n = n
        self.table = nn.Embedding(BUCKETS, BAG_WIDTH)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, tokens: Tensor, read: Tensor) -> Tensor:
        T, hashed = tokens.shape[1], torch.zeros_like(tokens)
        buckets, there = [], []
        for n in range(min(self.n, T)):
            hashed = longer(hashed, F.pad(tokens, (n, 0))[:, :T])
            buckets.append(row_of(hashed, n, BUCKETS))
            there.append(F.pad(read[:, n:], (n, 0)) if n else read)
        rows, counted = torch.cat(buckets, 1), torch.cat(there, 1)  # (B, n T)
        weights = counted.type_as(self.table.weight)
        if self.training:
            weights = F.dropout(weights, BAG_DROPOUT)
        scale = counted.sum(1, keepdim=True).type_as(weights).rsqrt()  # a text has at least one token
        return F.embedding_bag(rows, self.table.weight, per_sample_weights=weights * scale, mode="sum")


def multi_hot(classes: Tensor, n_classes: int) -> Tensor:
    """Which of `n_classes` each row of `classes` (B, n) names, of which -1 is none: (B, n_classes) bool."""
    found = torch.zeros(len(classes), n_classes + 1, dtype=torch.bool, device=classes.device)
    return found.scatter(1, classes.where(classes >= 0, n_classes), True)[:, :n_classes]


def feature_width(model: LanguageModel) -> int:
    """C of the features (B, T, C) that `model` makes."""
    token = torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device)
    with in_evaluation_mode(model):
        return model.hidden(token, None, None)[0].shape[-1]
