"""The WorkQueue resource: its model, its CRD and its condition reasons. Pure."""
