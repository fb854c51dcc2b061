"""The pages, and what keeps them true: code, figures of runs and pictures are filled in from the sources."""
