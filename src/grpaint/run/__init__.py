"""A run in progress: its loop, run folder, checkpoints, metrics, progress and signals."""
