"""The results folder: storage backends, sweep record, checkpoints' manifests, rows and logs."""
