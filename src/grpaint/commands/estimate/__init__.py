"""``grpaint plan``: what a recipe will need, said before any weight is opened."""

from grpaint.commands.estimate import page
from grpaint.commands.estimate.calibration import Times, calibrate
from grpaint.commands.estimate.forecast import Forecast, forecast, overhead
from grpaint.commands.estimate.levers import Pull, levers
from grpaint.commands.estimate.rehearsal import Memory, rehearse

__all__ = ["Forecast", "Memory", "Pull", "Times", "calibrate", "forecast", "levers", "overhead", "page", "rehearse"]
