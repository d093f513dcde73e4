"""The worker pods: how they are rendered, applied, asked and retired."""
