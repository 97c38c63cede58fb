"""``grpaint vote``: the page on which people rank the images of a run, and the export of their votes."""
