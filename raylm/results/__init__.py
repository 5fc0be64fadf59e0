"""Results folder: storage backends, lock and heartbeat, sweep record, manifests of checkpoints, rows and logs."""
