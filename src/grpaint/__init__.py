"""Post-train text-to-image models with online reinforcement learning.

What a program needs to train, judge and sample, and the pieces of a training step for a loop of its own:
docs/library.md shows both. The names and their modules are in ``__init__.pyi``; each is imported when first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
