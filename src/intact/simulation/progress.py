"""What is known of the quantizers, once more as a buffer: what copies the buffers of a model copies it as well.

An average of the weights (``torch.optim.swa_utils.AveragedModel``) is a copy that follows parameters and buffers of the
model in training, and nothing else. Without this it would be evaluated as the untrained model that it was made from.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from intact.private import fingerprint

__all__ = ["Progress"]


class Progress(nn.Module):
    """Flags in a buffer that is not part of the ``state_dict``.

    Args:
        size: how many flags.

    >>> mine, copy = Progress(2), Progress(2)
    >>> mine.write([True, False])
    >>> copy.read(), copy.flags.copy_(mine.flags).tolist(), copy.read(), copy.read()
    (None, [1.0, 0.0], [True, False], None)
    """

    flags: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("flags", torch.zeros(size), persistent=False)
        self._known = [False] * size
        self._seen = fingerprint([self.flags])

    def write(self, flags: Sequence[bool]) -> None:
        """Keep the model's own flags."""
        if list(flags) != self._known:
            self._known = list(flags)
            self.flags.copy_(torch.tensor(self._known))
            self._seen = fingerprint([self.flags])

    def read(self) -> list[bool] | None:
        """Flags that somebody else has written; None if nobody has."""
        now = fingerprint([self.flags])
        if now == self._seen:
            return None
        self._seen, found = now, [bool(x > 0) for x in self.flags.tolist()]
        if found == self._known:
            return None
        self._known = found
        return found
