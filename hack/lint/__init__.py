"""Checks of the repository that no off-the-shelf linter makes."""
