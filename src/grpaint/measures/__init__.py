"""How images are measured: Frechet and kernel distances, diversity, likeness, statistics, and what they look at."""
