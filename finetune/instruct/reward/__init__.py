"""Rewards: a model learns from its own answers, by what they are worth."""
