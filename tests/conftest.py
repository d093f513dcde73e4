"""Fixtures for all tests."""

pytest_plugins = ["tests.support.rabbitmq", "tests.support.worker"]
