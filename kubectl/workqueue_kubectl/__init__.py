"""The kubectl plugin `kubectl workqueue`."""
