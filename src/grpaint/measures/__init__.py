"""Measures of images (distances, diversity, likeness, statistics), their intervals, and the alarm of reward hacking."""
