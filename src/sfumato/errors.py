"""The three ways Sfumato says no.

The split tells a user whose turn it is: `UserError` is mended by other arguments, `PrivacyRefusal` protects the
guarantee and is mended by a different plan, `InternalError` is ours to mend. Messages never hold a private value: no
file name of a private folder, no count of records, no pixel.
"""

from __future__ import annotations


class SfumatoError(Exception):
    """Base of every error that Sfumato raises on purpose."""

    exit_code = 1


class UserError(SfumatoError):
    """An argument or the environment is wrong: says what was given, what is allowed, and what to do."""

    exit_code = 2


class PrivacyRefusal(SfumatoError):  # noqa: N818 - a refusal is not a fault
    """The request would break or weaken the privacy guarantee, so nothing was done."""

    exit_code = 3


class InternalError(SfumatoError):
    """A promise that Sfumato makes to itself does not hold: a bug of ours, please report it."""

    exit_code = 4
