"""The one error of this package."""


class EmbeddedError(Exception):
    """A private server cannot be had. The message says why and names the ways out."""
