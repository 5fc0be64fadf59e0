"""Experiment trackers: TensorBoard, Weights & Biases, MLflow and trackio, each in a process of its own."""
