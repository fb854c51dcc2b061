"""The models in NumPy, every gradient written by hand: to be read, and equal to torch's (tested). Imports no torch."""
