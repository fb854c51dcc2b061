"""Models that count: Kneser-Ney n-grams, their held-out folds, and the mixture of counts with a neural model."""
