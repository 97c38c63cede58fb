"""``grpaint compare``: train methods against each other at equal cost, over several seeds.

``command`` lays out the runs and writes the page, ``jobs`` makes a run in a process of its own and keeps its record.
"""
