"""Decisions of replicated groups: no clock, socket, disk, asyncio or gRPC in here."""
