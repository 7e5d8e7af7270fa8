"""Faults of disks, networks and clocks, and a flood, each on a real cluster under load.

Every test shows that writes were acknowledged while the fault was there, that the fault really happened, and that
afterwards nothing acknowledged is lost and all replicas are equal. Needs root, as `make test` documents.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from faults import WallClock, cut, fill, frames, last_segment, overwrite, resize, small_disk
from flotta_proto.kvdb import kvstore_pb2, kvstore_pb2_grpc
from flotta_proto.kvdb.gateway_pb2 import Status
from flotta_runtime.hashing import shard_index
from flotta_runtime.settings import Transport
from load import Load, acks_grow, under_load
from process_cluster import Client, ProcessCluster, replicas_equal, running, start_is_refused, until

SHARDS = 4
# No call may fail, however slow the disk: 160 puts of 256 KiB are written six times each before the last is answered.
PATIENCE_S = 60
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
BOTH = pytest.mark.parametrize("transport", ["native", "grpcio"])


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
        # Not its beginning: a frame that says the same may have been written in its place since.
        assert torn[-100:] not in segment.read_bytes(), "the torn tail is still there"
        await whole_again(cluster, load)
        print(f"{refusal}{len(whole)} frames were kept, {len(torn)} bytes after them wiped")


class Direct:
    """Calls one storage node itself, as KvDB's own gateway would: no route, no retry."""

    def __init__(self, cluster: ProcessCluster, name: str) -> None:
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{cluster.port(name)}")
        self._stub = kvstore_pb2_grpc.KVServiceStub(self._channel)
        self._metadata = (("x-kvdb-internal-token", cluster.internal_token()),)

    async def get(self, key: bytes) -> bytes:
        request = kvstore_pb2.KeyRequest(key=key)
        return bytes((await self._stub.Get(request, timeout=2, metadata=self._metadata)).value)

    async def set(self, key: bytes, value: bytes) -> None:
        request = kvstore_pb2.KeyValueRequest(key=key, value=value)
        await self._stub.Set(request, timeout=2, metadata=self._metadata)

    async def close(self) -> None:
        await self._channel.close()


async def refused(*calls: Coroutine[Any, Any, object]) -> list[str]:
    """Makes all calls at once; none may be answered with OK. The codes they failed with."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    codes = [answer.code().name for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert len(codes) == len(answers), f"a node without a majority answered {answers}"
    return codes


async def leader_of(cluster: ProcessCluster, key: bytes) -> str:
    shards = await cluster.shards()
    return str(shards[f"shard-{shard_index(key, SHARDS)}"]["leader"])


@BOTH
async def test_a_leader_cut_from_its_cluster_acknowledges_nothing_and_serves_nothing_stale(
    tmp_path: Path, transport: Transport
) -> None:
    key = b"cut"
    async with running(tmp_path, shards=SHARDS, gateways=1, separable=True, transport=transport) as cluster:
        load, gateway = new_load(cluster), Client(cluster.gateway_address())
        assert (await gateway.put(key, b"old")).status.code == Status.OK
        victim = await leader_of(cluster, key)
        others = [name for name in cluster.insiders() if name != victim]
        direct = Direct(cluster, victim)
        async with under_load(load):
            await acks_grow(load, load.keys)
            assert await direct.get(key) == b"old"
            with cut(cluster, ([victim], others), (others, [victim])) as lost:
                cut_at = time.monotonic()
                early = asyncio.create_task(
                    refused(direct.set(key, b"never"), direct.get(key), direct.set(key, b"never"))
                )

                async def written_elsewhere() -> bool:
                    return bool((await gateway.put(key, b"new", timeout=3)).status.code == Status.OK)

                await until(written_elsewhere, "another leader takes the write")
                resumed = time.monotonic() - cut_at
                await acks_grow(load, load.keys)
                codes = await early
                codes += await refused(*(direct.get(key) for _ in range(8)))
                answers = await asyncio.gather(*(gateway.get(key) for _ in range(8)))
                assert [answer.kv.value for answer in answers] == [b"new"] * 8
                dropped = lost.dropped()
                assert dropped > 0

            async def heard() -> bool:
                return await direct.get(key) == b"new"

            await until(heard, "the healed node serves what was written without it")
            await acks_grow(load, load.keys)
        await whole_again(cluster, load)
        assert (await gateway.get(key)).kv.value == b"new"
        print(f"{victim} cut: {dropped} packets lost, the next leader wrote after {resumed:.2f} s")
        print(f"what {victim} said meanwhile: {Counter(codes)}")

        await direct.close()
        await gateway.close()


@BOTH
async def test_a_leader_that_can_send_but_not_hear_gives_way(tmp_path: Path, transport: Transport) -> None:
    """One way only: connections to it are dead, its own to the others are not, so its heartbeats still arrive."""
    async with running(tmp_path, shards=SHARDS, gateways=1, separable=True, transport=transport) as cluster:
        load = new_load(cluster)
        async with under_load(load):
            await acks_grow(load, load.keys)
            deaf = await leader_of(cluster, load.keys[0])
            others = [name for name in cluster.insiders() if name != deaf]
            with cut(cluster, (others, [deaf])) as lost:
                cut_at = time.monotonic()

                async def gave_way() -> bool:
                    return await leader_of(cluster, load.keys[0]) != deaf

                await until(gave_way, "another leader is known")
                moved = time.monotonic() - cut_at
                await acks_grow(load, load.keys)
                resumed, dropped = time.monotonic() - cut_at, lost.dropped()
                assert dropped > 0
            await acks_grow(load, load.keys)
        await whole_again(cluster, load)
        print(f"{deaf} deaf: {dropped} packets lost, new leader after {moved:.2f} s, all keys after {resumed:.2f} s")


@dataclass
class Flood:
    """One client that sends far more than a node can take, bounded in count and time."""

    address: str
    puts_max: int = 1_200
    concurrency: int = 160
    value_bytes: int = 256 << 10
    seconds: float = 6
    replies: Counter[str] = field(default_factory=Counter)
    acknowledged: list[int] = field(default_factory=list)

    def value(self, number: int) -> bytes:
        return hashlib.sha256(b"%d" % number).digest() * (self.value_bytes // 32)

    async def run(self) -> None:
        client, numbers, end = Client(self.address), iter(range(self.puts_max)), time.monotonic() + self.seconds

        async def sender() -> None:
            for number in numbers:
                if time.monotonic() > end:
                    return
                try:
                    reply = await client.put(b"flood %d" % number, self.value(number), timeout=PATIENCE_S)
                except grpc.aio.AioRpcError as error:
                    self.replies[error.code().name] += 1
                    continue
                self.replies[Status.Code.Name(reply.status.code)] += 1
                if reply.status.code == Status.OK:
                    self.acknowledged.append(number)

        async with asyncio.TaskGroup() as group:
            for _ in range(self.concurrency):
                group.create_task(sender())
        await client.close()

    async def verify(self) -> None:
        client = Client(self.address)
        for number in self.acknowledged:
            reply = await client.get(b"flood %d" % number, timeout=PATIENCE_S)
            assert reply.kv.value == self.value(number), f"acknowledged put {number} reads otherwise"
        await client.close()


def memory_megabytes(cluster: ProcessCluster) -> dict[str, tuple[int, int]]:
    """process -> (resident memory now, the most it ever was)."""
    found = {}
    for name in cluster.members():
        status = Path(f"/proc/{cluster.pid(name)}/status").read_text()
        kilobytes = {key: int(value.split()[0]) for key, value in re.findall(r"(VmRSS|VmHWM):\s+(.*)", status)}
        found[name] = (kilobytes["VmRSS"] >> 10, kilobytes["VmHWM"] >> 10)
    return found


@BOTH
async def test_a_flood_leaves_a_quiet_client_alone_and_memory_bounded(tmp_path: Path, transport: Transport) -> None:
    async with running(tmp_path, shards=SHARDS, gateways=1, transport=transport) as cluster:
        flood, quiet = Flood(cluster.gateway_address()), Client(cluster.gateway_address())
        flooding, calls, slowest = asyncio.create_task(flood.run()), 0, 0.0
        try:
            while not flooding.done():
                calls, begun = calls + 1, time.monotonic()
                put = await quiet.put(b"quiet", b"%d" % calls, timeout=PATIENCE_S)
                got = await quiet.get(b"quiet", timeout=PATIENCE_S)
                assert put.status.code == got.status.code == Status.OK, (put.status, got.status)
                assert got.kv.value == b"%d" % calls
                slowest = max(slowest, time.monotonic() - begun)
        finally:
            await flooding
        memory = memory_megabytes(cluster)
        print(f"{flood.replies}; {calls} quiet calls, the slowest {slowest:.2f} s")
        print("resident MB, now and at most: " + ", ".join(f"{name} {row}" for name, row in memory.items()))
        # Not more than that: on a busy machine a single quiet call may take as long as the flood may last.
        assert calls and flood.replies.total() >= flood.concurrency and flood.acknowledged, (
            f"no flood: {calls}, {flood.replies}"
        )
        assert set(flood.replies) <= {"OK", "RATE_LIMITED"}, flood.replies
        assert all(most < 1_000 for _, most in memory.values()), memory
        await flood.verify()
        await replicas_equal(cluster)
        await quiet.close()


async def test_a_wall_clock_that_jumps_expires_nothing_early_and_brings_nothing_back(tmp_path: Path) -> None:
    wrong, hour_ms = "node-1", 3_600_000
    clock = WallClock(tmp_path)
    async with running(tmp_path, shards=SHARDS, gateways=1, variables={wrong: clock.variables()}) as cluster:
        load, gateway = new_load(cluster), Client(cluster.gateway_address())

        async def led_by_it() -> bytes | None:
            found = [key for key in load.keys if await leader_of(cluster, key) == wrong]
            return found[0] if found else None

        beside: bytes = await until(led_by_it, f"{wrong} leads a shard")
        shard = shard_index(beside, SHARDS)
        hour, second = [key for n in range(99) if shard_index(key := b"ttl %d" % n, SHARDS) == shard][:2]

        async def gone() -> bool:
            return (await gateway.get(second)).status.code == Status.NOT_FOUND

        async def jump(offset: str, said: str) -> None:
            before = len(cluster.log(wrong))
            clock.set(offset)

            async def noticed() -> bool:
                return said in cluster.log(wrong)[before:]

            await until(noticed, f"{wrong} says that {said!r}")
            await acks_grow(load, load.keys, by=10)
            assert (await gateway.get(hour)).status.code == Status.OK, "a key expired early by a wrong clock"

        async with under_load(load):
            await acks_grow(load, load.keys)
            assert (await gateway.put(hour, b"x", ttl_ms=hour_ms)).status.code == Status.OK
            await jump("-2h", "the clock differs by more than")
            await jump("+0", "the clock agrees with most peers again")
            await jump("+1d", "the clock differs by more than")
            assert (await gateway.put(second, b"y", ttl_ms=1_000)).status.code == Status.OK
            assert await leader_of(cluster, beside) == wrong, "the clock was not the leader's"
            await jump("+0", "the clock agrees with most peers again")
            await until(gone, "the key expires once the clock is right")
            cluster.kill(wrong)
            await acks_grow(load, load.keys)
            assert await gone(), "an expired key came back under the next leader"
            await cluster.command("start")
        await whole_again(cluster, load)
        await gateway.close()
