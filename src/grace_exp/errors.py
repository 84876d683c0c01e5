"""Errors meant for the user: shown as one message, without a traceback."""


class GraceError(Exception):
    """Something the user can mend; the message says what and how."""


class ConfigError(GraceError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another."""


class DataError(GraceError):
    """A row or file of data cannot be used; the message names file and line."""


class MissingResourceError(GraceError):
    """The machine lacks what the run needs: a device, a package, a model."""
