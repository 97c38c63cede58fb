"""Reward models, one file each; those in other processes or on other machines, and their server, in ``elsewhere``."""
