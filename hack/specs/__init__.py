"""Check the specifications in docs/specs with TLC: `python -m hack.specs`."""
