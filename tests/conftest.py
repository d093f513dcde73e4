"""Fixtures for all tests."""

pytest_plugins = ["tests.support.definition", "tests.support.rabbitmq", "tests.support.worker"]
