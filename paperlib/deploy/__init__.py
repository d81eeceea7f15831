"""Trained detectors outside of PyTorch: ONNX files and latency."""
