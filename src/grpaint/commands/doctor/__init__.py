"""``grpaint doctor``: check before a run that a recipe can learn with this model on this machine.

Each check is a function of an :class:`~grpaint.commands.doctor.examination.Examination` and can be used alone
(``sampling``, ``learning``); together (``command.CHECKS``) they are the conformance suite of model families.
"""
