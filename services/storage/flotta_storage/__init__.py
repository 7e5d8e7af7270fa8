"""The storage node: replicas of many shards in one process."""
