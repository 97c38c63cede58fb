"""``grpaint plan``: predict memory, model evaluations, disk and time of a recipe before any weight is opened.

``rehearsal`` runs the recipe's own loop on tensors without contents, ``ledger`` books what they would hold,
``forecast`` sums it up, ``levers`` looks for settings that need less, ``calibration`` measures seconds.
"""
