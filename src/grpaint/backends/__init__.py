"""Models behind the ``Policy`` protocol: the built-in one, diffusers pipelines with LoRA, a closed form for tests."""
