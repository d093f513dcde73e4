"""How a handler runs: in a thread or as an asyncio task."""
