"""The cost of a trial before it runs: devices, memory, throughput, and the plan of a sweep."""
