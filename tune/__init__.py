"""A search for the best flags of a command that trains, over runs of that command."""
