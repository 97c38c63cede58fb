"""``grpaint sample``: draw captions with a trained model; ``provenance`` writes and reads how a picture was drawn."""
