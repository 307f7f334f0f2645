"""Algorithms that make a model of one stage into a better one of the same stage."""

from intact.algorithms.bias_correction import correct_bias
from intact.algorithms.smooth import smooth, smooth_attention

__all__ = ["correct_bias", "smooth", "smooth_attention"]
