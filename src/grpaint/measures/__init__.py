"""Measures of images (distances, diversity, likeness, statistics) and of their scores, and the alarm of reward hacking."""
