"""The gateway: routes client requests to shard leaders."""
