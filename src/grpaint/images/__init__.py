"""Captioned images and prompt files as data for training: folders, shards, tables, tags, and the order of use."""
