"""Rewrites of a model's graph into what ONNX Runtime runs faster, each tried before it is kept."""
