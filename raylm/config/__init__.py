"""What a user writes: sweeps, trials, search spaces, sweep files, and the validation of all of them."""
