"""The Python client and command line."""
