"""Fake CUDA tensors under a CPU build of torch: devices, dtypes, shapes and memory of the GPU path, but no numbers."""
