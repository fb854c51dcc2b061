"""Going on with a series of numbers: a command, which stands on `engine`, and nothing stands on it."""
