"""``grpaint export``: a trained model in the formats of other programs (``formats``), and onto a hub (``push``)."""
