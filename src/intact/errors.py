"""The errors that Intact raises: each says what, where, what it got, what is allowed, how to fix it."""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "CalibrationError",
    "CaptureError",
    "ExportError",
    "IntactError",
    "NonFiniteError",
    "PlanError",
    "TrainingError",
]


class IntactError(Exception):
    """Base of every error raised on purpose by Intact.

    Args:
        what: one sentence: what is wrong.
        where: module path, edge, rule or file that it concerns.
        got: the value that was found.
        allowed: what would have been accepted.
        fix: what the user can do about it.

    >>> str(IntactError("scale is not positive", where="conv1", got=-1.0, fix="recalibrate"))
    'scale is not positive [where: conv1] [got: -1.0] [fix: recalibrate]'
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        got: object = None,
        allowed: object = None,
        fix: str | None = None,
    ) -> None:
        self.what, self.where, self.got, self.allowed, self.fix = what, where, got, allowed, fix
        parts = [what]
        for label, value in (("where", where), ("got", got), ("allowed", allowed), ("fix", fix)):
            if value is not None and value != "":
                parts.append(f"[{label}: {value}]")
        super().__init__(" ".join(parts))


class CaptureError(IntactError):
    """The float model could not be captured as a graph."""


class PlanError(IntactError):
    """The recipe, the model and the target contradict each other; raised before data is read."""


class CalibrationError(IntactError):
    """Calibration data is missing, exhausted, empty or of the wrong kind."""


class NonFiniteError(CalibrationError):
    """A NaN or an infinity appeared at a named site."""


class TrainingError(IntactError):
    """Training went wrong at a named site, or was set up so that it would."""


class ExportError(IntactError):
    """The model could not be exported, or the runtime does not give the planned codes."""


class ArtifactError(IntactError):
    """A saved artefact is damaged, incomplete, or not an Intact artefact."""
