"""What the benchmark reads out of the reports of its load generators, and the request bodies it makes itself."""

import json
from typing import Any

import pytest
from flotta_proto.flotta import kv_pb2
from flotta_proto.kvdb import gateway_pb2
from generators import DIALECTS, Work, dialect_of, parse_ghz, parse_h2load, parse_redis, shuffled_keys
from google.protobuf import json_format


def ghz_report(rows: list[tuple[float, str]], total_ns: int) -> str:
    details = [{"latency": int(ms * 1e6), "status": status, "error": ""} for ms, status in rows]
    return json.dumps({"count": len(rows), "total": total_ns, "details": details})


def test_ghz_calls_that_failed_have_no_latency_and_no_share_in_the_rate():
    load = parse_ghz(ghz_report([(1.0, "OK"), (900.0, "DeadlineExceeded"), (3.0, "OK")], total_ns=2_000_000_000))
    assert (load.calls, load.succeeded, load.rate, load.p50_ms, load.p99_ms) == (3, 2, 1.0, 1.0, 3.0)


def test_ghz_without_a_single_answer_is_a_load_of_nothing():
    load = parse_ghz('{"count": 0, "total": 1000000, "details": null}')
    assert (load.succeeded, load.rate) == (0, 0.0)


def test_h2load_spans_from_the_first_start_to_the_last_end():
    load = parse_h2load("1000000\t200\t1000\n1500000\t200\t500000\n1100000\t503\t99\n", calls=3, seconds=60)
    assert (load.calls, load.succeeded, load.seconds, load.p50_ms, load.p99_ms) == (3, 2, 1.0, 1.0, 500.0)


REDIS = """\
Latency by percentile distribution:
0.000% <= 0.103 milliseconds (cumulative count 0)
59.086% <= 0.703 milliseconds (cumulative count 29543)
99.084% <= 1.607 milliseconds (cumulative count 49541)
99.902% <= 3.103 milliseconds (cumulative count 49951)
100.000% <= 5.103 milliseconds (cumulative count 50000)

Summary:
  throughput summary: 25000.00 requests per second
"""


def test_redis_percentiles_are_the_upper_ends_of_its_buckets():
    load = parse_redis(REDIS, 50_000)
    assert (load.rate, load.p50_ms, load.p99_ms, load.p999_ms) == (25_000.0, 0.703, 1.607, 3.103)
    with pytest.raises(ValueError, match="no report"):
        parse_redis("Could not connect to Redis", 1)


@pytest.mark.parametrize("size", [0, 127, 128, 256, 4096, 262_144])
def test_our_own_encoding_is_what_a_gateway_parses(size: int):
    key, value = b"bench-00000001", b"v" * size
    put = gateway_pb2.PutRequest.FromString(DIALECTS["flotta", "put"].fields(key, value))
    assert (put.key, put.value) == (key, value)
    get = gateway_pb2.GetRequest.FromString(DIALECTS["flotta", "get"].fields(key, value))
    assert (get.key, get.options.consistency) == (key, gateway_pb2.STRONG)
    assert DIALECTS["flotta", "put"].path == "/kvdb.gateway.KvGateway/Put"


@pytest.mark.parametrize("operation", ["put", "get"])
def test_batches_hold_every_key_once_and_are_what_a_gateway_parses(operation: str):
    keys = shuffled_keys(1_000, seed=7)
    groups = Work(operation, keys, b"value", calls=1, concurrency=1, connections=1, batch=100).groups()
    assert [len(group) for group in groups] == [100] * 10
    assert [key for group in groups for key in group] == keys
    dialect = dialect_of("flotta", operation, 100)
    assert dialect.path == "/flotta.kv.v1.Kv/Batch"
    parsed = kv_pb2.BatchRequest.FromString(dialect.request(groups[3], b"value"))
    assert [getattr(item, operation).key for item in parsed.items] == list(groups[3])
    written: dict[str, Any] = dialect.json_request(groups[3], b"value")
    assert json_format.ParseDict(written, kv_pb2.BatchRequest()) == parsed
    with pytest.raises(KeyError):
        dialect_of("redis", operation, 100)
    assert len(Work(operation, keys[:250], b"v", 1, 1, 1, batch=100).groups()) == 2


def test_keys_are_all_there_in_an_order_that_repeats():
    keys = shuffled_keys(1000, seed=7)
    assert len(set(keys)) == 1000
    assert keys != sorted(keys)
    assert keys == shuffled_keys(1000, seed=7)
