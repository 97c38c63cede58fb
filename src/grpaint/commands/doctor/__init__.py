"""``grpaint doctor``: check that a recipe can learn on this machine and model, before it runs.

Every check is a function of an :class:`~grpaint.commands.doctor.examination.Examination`, usable alone (``sampling``,
``learning``); together (``command.CHECKS``) they are the conformance suite that a model family has to pass.
"""
