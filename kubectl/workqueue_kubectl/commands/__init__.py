"""The commands of `kubectl workqueue`, one module each; `cli` imports only the one that is asked for."""
