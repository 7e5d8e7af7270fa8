"""The coordinator's decisions: state + command -> state + changes, with no I/O, clock, randomness or gRPC."""
