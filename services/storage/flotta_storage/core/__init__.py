"""What a shard's replicas decide: rows, commands, reads, replica life and moves. No clock, no I/O, no gRPC."""
