"""The container image: build, audit, bill of materials."""
