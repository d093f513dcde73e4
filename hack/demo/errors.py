"""The one error of the demo."""


class DemoError(Exception):
    """Something is not as promised, or cannot be had. Says what, and what to do about it."""
