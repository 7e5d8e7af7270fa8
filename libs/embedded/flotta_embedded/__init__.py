"""Deterministic commands over an ordered store: the core of every replica."""
