"""``grpaint plan``: what a recipe will need, said before any weight is opened."""

from grpaint.plan import page
from grpaint.plan.calibration import Times, calibrate
from grpaint.plan.forecast import Forecast, forecast, overhead
from grpaint.plan.levers import Pull, levers
from grpaint.plan.rehearsal import Memory, rehearse

__all__ = ["Forecast", "Memory", "Pull", "Times", "calibrate", "forecast", "levers", "overhead", "page", "rehearse"]
