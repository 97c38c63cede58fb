"""``grpaint plan``: predict memory, model evaluations, disk and time of a recipe before any weight is opened.

``rehearsal`` runs the recipe's own loop on tensors without storage, ``ledger`` counts the bytes they would take,
``replay`` repeats the cost of a network's call without running it, ``forecast`` sums up, ``levers`` searches settings
that need less memory, ``calibration`` measures seconds, and ``terminal`` formats all of it.
"""
