"""The only code that imports pika. Used by worker, CLI and operator."""
