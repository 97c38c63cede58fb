"""Captioned images and prompt files: what is in a folder, a shard or a table, and what a run may take from it."""
