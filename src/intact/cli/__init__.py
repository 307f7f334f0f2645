"""The command line: ``intact quantize``, ``plan``, ``compare``, ``export`` and ``demo``."""

from intact.cli.commands import app

__all__ = ["app"]
