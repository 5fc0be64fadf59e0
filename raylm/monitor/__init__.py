"""Monitoring of a running sweep: console, heartbeat, dashboard and experiment trackers."""
