"""
What can go wrong with dead letters.

Law: as for all errors, said at the head of the room.
"""

from __future__ import annotations

from eventbus.errors._root import EventBusError

__all__ = ["DeadLetterBusyError", "DeadLetterNotFoundError", "DeadLettersFullError"]


class DeadLetterBusyError(EventBusError, RuntimeError):
    """
    Raised when somebody else is redriving a dead letter.

    Attributes:
        letter_id: The letter's id.

    .. versionadded:: 0.1
    """

    def __init__(self, message: str, *, letter_id: str = "") -> None:
        super().__init__(message)
        self.letter_id = letter_id


class DeadLetterNotFoundError(EventBusError, LookupError):
    """
    Raised when there is no dead letter with the given id.

    Attributes:
        letter_id: The id.

    .. versionadded:: 0.1
    """

    def __init__(self, message: str, *, letter_id: str = "") -> None:
        super().__init__(message)
        self.letter_id = letter_id


class DeadLettersFullError(EventBusError, RuntimeError):
    """
    Raised when a full dead-letter store with overflow "raise" gets another.

    .. versionadded:: 0.1
    """
