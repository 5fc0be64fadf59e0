"""Tests of the CUDA path, on a GPU or on a fake one; scripts/test-gpu runs them."""
