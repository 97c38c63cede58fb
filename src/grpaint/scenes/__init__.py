"""The embedded world: captions and their grammar, renderer, exact checker, and a small image-text scorer."""
