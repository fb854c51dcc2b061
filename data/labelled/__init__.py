"""Reading labelled texts, a file for each shape in which they are published."""
