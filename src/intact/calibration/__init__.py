"""One float pass over the data, observed."""

from intact.calibration.loop import batches, calibrate, items, label_of

__all__ = ["batches", "calibrate", "items", "label_of"]
