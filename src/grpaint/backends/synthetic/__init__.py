"""Pipelines with random weights, small or of real size, for tests, the offline demo and measurements."""
