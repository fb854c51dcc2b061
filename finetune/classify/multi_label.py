"""Texts with any number of labels each: above which probability a text has a label, and how well that does."""

from typing import Any

import numpy as np


def choose_thresholds(p: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """A threshold for each class, (classes,) float32: a text has the label whose probability is at least that.

    `p` (examples, classes) float32 are probabilities of validation examples, `actual` (examples, classes) which labels
    these have. The threshold has the best F1 of its class on them (SCut: Yang, "A Study of Thresholding Strategies for
    Text Categorization", 2001), and lies in the middle between two probabilities; of several that are as good it is the
    one nearest to 0.5. A class that no example has gets 0.5."""
    return np.array([_best_threshold(p[:, n], actual[:, n]) for n in range(p.shape[1])], np.float32)


def _best_threshold(p: np.ndarray, actual: np.ndarray) -> float:
    if not actual.any():
        return 0.5
    order = np.argsort(-p, kind="stable")
    ranked, right = p[order], actual[order].cumsum()
    f1 = 2 * right / (np.arange(1, len(p) + 1) + right[-1])
    below = np.append(ranked[1:], np.float32(0))  # the probability that follows each
    is_end = np.append(ranked[1:] < ranked[:-1], True)  # equal ones are above a threshold together
    best = is_end & (f1 == f1[is_end].max())
    middle = (ranked[best] + below[best]) / 2
    thresholds = np.where(middle > below[best], middle, ranked[best])  # between two neighbours there is no middle
    return float(thresholds[np.abs(thresholds - 0.5).argmin()])


def measure_sets(p: np.ndarray, actual: np.ndarray, labels: list[str], thresholds: np.ndarray) -> dict[str, Any]:
    """What `summary.json` says of probabilities `p` (examples, classes), where texts have the labels `actual`, as
    there: micro-F1, of all pairs of a text and a label together; macro-F1, the mean over classes; subset accuracy, how
    many texts have exactly the labels that were predicted; and each class by itself.

    A class without a prediction has precision 0; one without an example does not count in the macro mean."""
    predicted = p >= thresholds
    right, said, there = (predicted & actual).sum(0), predicted.sum(0), actual.sum(0)
    precision, recall = right / np.maximum(said, 1), right / np.maximum(there, 1)
    f1 = 2 * right / np.maximum(said + there, 1)
    return {
        "micro_f1": float(2 * right.sum() / max(1, said.sum() + there.sum())),
        "macro_f1": float(f1[there > 0].mean()) if there.any() else 0.0,
        "subset_accuracy": float((predicted == actual).all(1).mean()) if len(actual) else 0.0,
        "classes": {
            label: {
                "precision": float(precision[n]),
                "recall": float(recall[n]),
                "f1": float(f1[n]),
                "examples": int(there[n]),
                "threshold": float(thresholds[n]),
            }
            for n, label in enumerate(labels)
        },
    }
