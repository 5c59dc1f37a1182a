"""ONNX file -> network: safe loading, folding, cuts, layers, descriptors, segment extraction."""
