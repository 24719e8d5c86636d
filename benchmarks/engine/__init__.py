"""The cost of each option of ONNX Runtime, without a server."""
