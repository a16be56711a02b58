"""What can go wrong, one class per thing a catcher does differently.

Every message says what was found, what is allowed, where, and what to do.
"""


class PlaitError(Exception):
    """Root of every error that plait raises on purpose."""


class ConfigError(PlaitError):
    """A recipe, a setting or a flag is wrong: fix it and run again."""


class DataError(PlaitError):
    """A document, record or shard cannot be used; the message names file and record."""


class CheckpointError(PlaitError):
    """A model directory is incomplete or inconsistent; the message names file and tensor."""


class CapacityError(PlaitError):
    """The request is fine but does not fit now: fewer or shorter requests, or more memory."""


class EndpointError(PlaitError):
    """A language model's server cannot be used as a whole; finished work stands."""


class RequestError(PlaitError):
    """A generation request contradicts itself or asks for what cannot be done."""
