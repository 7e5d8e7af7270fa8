"""The coordinator: owns the shard map."""
