"""Models for where the code of this project is not: StableHLO, ONNX, and parameters by name."""
