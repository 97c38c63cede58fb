"""Networks that look at pictures, shared by rewards and measures (CLIP, BLIP, LPIPS), and how images are prepared."""
