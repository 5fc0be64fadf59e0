"""Resources of a cluster for trials: nodes that are there, and nodes that its autoscaler can start."""
