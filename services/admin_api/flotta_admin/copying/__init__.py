"""Backups and restores: the rows of a cluster to a directory of this machine, and back."""
