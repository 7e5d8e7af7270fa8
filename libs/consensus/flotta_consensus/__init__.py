"""Replicated groups: propose, linearizable reads, snapshots and membership over the native Raft host."""
