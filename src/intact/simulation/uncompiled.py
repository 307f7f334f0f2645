"""Methods that ``torch.compile`` leaves alone."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch

__all__ = ["Uncompiled"]


class Uncompiled:
    """The methods named in ``uncompiled`` run as they are inside of what ``torch.compile`` compiles.

    ``torch.compiler.disable`` imports the compiler, which takes longer than the rest of ``import intact``: so it is
    called with the first instance, and not where a model is only loaded.
    """

    uncompiled: ClassVar[tuple[str, ...]] = ()
    _done: ClassVar[set[type]] = set()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Also what copies and pickles begin with."""
        if cls not in cls._done:
            for name in cls.uncompiled:
                setattr(cls, name, torch.compiler.disable(getattr(cls, name)))
            cls._done.add(cls)
        return super().__new__(cls)
