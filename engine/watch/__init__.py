"""Loss curves of runs while they train: who follows them, the page that shows them, and train.py --watch."""
