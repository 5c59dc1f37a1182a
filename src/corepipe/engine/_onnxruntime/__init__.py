"""Operators of a model spelt out in others that ONNX Runtime is quicker at."""
