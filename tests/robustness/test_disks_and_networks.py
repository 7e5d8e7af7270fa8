"""Faults of disks, networks and clocks, and a flood, each on a real cluster under load.

Every test shows that writes were acknowledged while the fault was there, that the fault really happened, and that
afterwards nothing acknowledged is lost and all replicas are equal. Needs root, as `make test` documents.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from faults import fill, frames, last_segment, overwrite, resize, small_disk
from load import Load, acks_grow, under_load
from process_cluster import ProcessCluster, replicas_equal, running, start_is_refused, until

SHARDS = 4
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def new_load(cluster: ProcessCluster, keys: int = 12, value_bytes: int = 0) -> Load:
    return Load([cluster.gateway_address()], [b"key %d" % n for n in range(keys)], value_bytes=value_bytes)


async def ended(cluster: ProcessCluster, name: str) -> None:
    async def gone() -> bool:
        return not cluster.alive(name)

    await until(gone, f"{name} has ended")


async def whole_again(cluster: ProcessCluster, load: Load) -> None:
    """Nothing acknowledged is lost, and every replica holds the same."""
    checked = await load.verify(cluster.gateway_address())
    found = await replicas_equal(cluster)
    print(f"{load.total()} acknowledged writes, {checked} keys checked, {len(found)} shards equal on all nodes")


async def test_a_node_whose_disk_is_full_ends_and_the_others_serve(tmp_path: Path) -> None:
    victim = "node-2"
    disk = tmp_path / "data" / victim
    with small_disk(disk, megabytes=40):
        async with running(tmp_path, shards=SHARDS, gateways=1) as cluster:
            load = new_load(cluster, keys=8, value_bytes=64 << 10)
            async with under_load(load):
                await acks_grow(load, load.keys)
                await ended(cluster, victim)
                last_words = [line for line in cluster.log(victim).splitlines() if "the process ends" in line]
                assert len(last_words) == 1, last_words
                sentence = json.loads(last_words[0])["event"]
                assert "No space left on device" in sentence, sentence
                await acks_grow(load, load.keys)
                filler = fill(disk)
                refusal = await start_is_refused(cluster, victim)
                assert refusal.count("\n") == 1 and "No space left on device" in refusal and str(disk) in refusal, (
                    refusal
                )
                filler.unlink()
                resize(disk, megabytes=2_000)
                await cluster.command("start", victim)
                await acks_grow(load, load.keys)
            await whole_again(cluster, load)
            print(f"{sentence}\n{refusal}")


def flip(path: Path, offset: int) -> None:
    (byte,) = path.read_bytes()[offset : offset + 1]
    overwrite(path, offset, bytes([byte ^ 0x20]))


async def test_a_damaged_log_stops_the_start_and_a_torn_tail_does_not(tmp_path: Path) -> None:
    victim = "node-3"
    async with running(tmp_path, shards=SHARDS, gateways=1) as cluster:
        load = new_load(cluster)
        async with under_load(load):
            await acks_grow(load, load.keys, by=20)
            os.kill(cluster.pid(victim), signal.SIGTERM)
            await ended(cluster, victim)
            segment = last_segment(tmp_path / "data" / victim)
            whole = frames(segment)
            begin, end = whole[len(whole) // 2]
            flip(segment, (begin + end) // 2)
            refusal = await start_is_refused(cluster, victim)
            assert refusal.count("\n") == 1, refusal
            assert f"log corrupted in {segment} at offset {begin}:" in refusal, refusal
            await acks_grow(load, load.keys)
            flip(segment, (begin + end) // 2)
            await cluster.command("start", victim)
            await acks_grow(load, load.keys, by=20)
            cluster.kill(victim)
            await ended(cluster, victim)
            segment = last_segment(tmp_path / "data" / victim)
            whole = frames(segment)
            _, end = whole[-1]
            # What a torn write leaves: the start of a frame that is not all there, here of the one before it.
            begin, _ = whole[-2]
            torn = segment.read_bytes()[begin : begin + 24] + os.urandom(300)
            overwrite(segment, end, torn)
            await cluster.command("start", victim)
            await acks_grow(load, load.keys)
        assert frames(segment)[: len(whole)] == whole
        assert torn[:24] not in segment.read_bytes()[end : end + 24], "the torn tail is still there"
        await whole_again(cluster, load)
        print(f"{refusal}{len(whole)} frames were kept, {len(torn)} bytes after them wiped")
