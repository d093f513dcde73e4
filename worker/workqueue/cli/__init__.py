"""The commands of `workqueue`, one module each."""
