"""``grpaint compare``: train methods against each other at equal cost, over several seeds.

``command`` plans the runs and writes the page; ``jobs`` runs each in a process of its own and writes its record.
"""
