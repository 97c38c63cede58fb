"""``grpaint export``: ``formats`` writes a trained model for other programs, ``push`` uploads it to a hub."""
