"""The error of hack.demo."""


class DemoError(Exception):
    """A check failed, or a requirement is missing. The message says what is wrong and what to do."""
