"""The exceptions that a user of this package can meet. Floor 0: imports nothing of ours.

Every message says what was got, what is allowed and what to do next, in one line: the command line prints it as it
is and exits with code 2.
"""


class RsBiformerError(Exception):
    """Base of everything this package raises on purpose."""


class ConfigError(RsBiformerError):
    """An option, a configuration key or a combination of them that cannot be meant."""


class RasterError(RsBiformerError):
    """A raster that is missing, unreadable, or does not fit its partner, the schema or the model."""


class CheckpointError(RsBiformerError):
    """A checkpoint that is missing, damaged, or made for something else."""
