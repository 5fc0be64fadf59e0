"""What is seen while a sweep runs: console, progress, heartbeat, dashboard and experiment trackers."""
