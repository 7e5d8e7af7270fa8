"""The HTTP admin service."""
