"""Ways out for a run: the Hub's layout for `transformers`, PEFT, GGUF, ONNX, a web page."""
