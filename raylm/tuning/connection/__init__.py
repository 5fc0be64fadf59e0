"""The connection to Ray: a Ray of this machine, the head of a cluster, or the dashboard that takes jobs."""
