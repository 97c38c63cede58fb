"""Kills at random moments: every run that is resumed after them ends as the one that nothing stopped.

``processes`` forks commands from a warm process, ``subjects`` are what is killed, ``trials`` kills and compares.
"""
