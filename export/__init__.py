"""Ways out for a run: the Hub's layout for `transformers`, and ONNX."""
