"""``grpaint view``: a table of all runs, the page of each, and several side by side, served to a browser."""
