"""The flags: their sections and defaults, what they may not be, and the command line into them. No torch."""
