"""``grpaint sample``: draw captions with a trained model; ``provenance`` holds what each picture says of its making."""
