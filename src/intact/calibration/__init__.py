"""One float pass over the data, observed."""

from intact.calibration.loop import calibrate

__all__ = ["calibrate"]
