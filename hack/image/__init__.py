"""Build the container image, audit its packages, and write its bill of materials."""
