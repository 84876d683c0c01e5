"""Errors meant for the user: shown as one message, without a traceback."""


class GraceError(Exception):
    """A problem that the user can mend; the message says what is wrong and how to mend it."""


class ConfigError(GraceError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another."""


class DataError(GraceError):
    """A row or file of data cannot be used; the message names the file and the line."""


class MissingResourceError(GraceError):
    """The machine lacks what the run needs: a device, a package, a model."""


class EngineFailed(GraceError):
    """The rollout engine has died, or fails at every request."""
