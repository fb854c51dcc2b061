"""Series of numbers, read from the columns of tables and written as one character a value."""
