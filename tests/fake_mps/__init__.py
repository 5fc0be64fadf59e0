"""Stand-in for Apple's GPU under a CPU build of torch: the path of `mps`, with numbers, computed by the host."""
