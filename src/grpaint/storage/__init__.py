"""Files: weight files, repositories of a hub, cache folders, and atomic writes."""
