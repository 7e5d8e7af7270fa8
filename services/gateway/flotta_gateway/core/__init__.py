"""The gateway's decisions: no clock, no socket, no event loop."""
