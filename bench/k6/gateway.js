// A mix of Put, Get and Delete at a gateway, from a few clients to fifty and back. What a client sends and what counts
// as good is KvDB's: a reply is a failure when gRPC fails, or when its own status is none that a client lives with.
//
// From the environment: GATEWAY, PROTO_DIR; WRITE_PCT DELETE_PCT KEYSPACE VALUE_BYTES PRELOAD PRELOAD_KEYS DEADLINE_MS
// SLEEP_MS CONSISTENCY DURABILITY REQUIRE_IDEMPOTENCY P95_MS_MAX; SCALE shortens the stages.

import grpc from "k6/net/grpc";
import encoding from "k6/encoding";
import { sleep } from "k6";
import exec from "k6/execution";
import { Rate, Counter } from "k6/metrics";

const setting = (name, otherwise) => __ENV[name] || otherwise;
const number = (name, otherwise) => Number(setting(name, otherwise));

const GATEWAY = setting("GATEWAY", "localhost:7000");
const WRITE_PCT = number("WRITE_PCT", 20);
const DELETE_PCT = number("DELETE_PCT", 0);
const KEYSPACE = number("KEYSPACE", 10000);
const VALUE = encoding.b64encode("x".repeat(number("VALUE_BYTES", 256)));
const PRELOAD_KEYS = setting("PRELOAD", "false") === "true" ? number("PRELOAD_KEYS", Math.min(KEYSPACE, 2000)) : 0;
const DEADLINE = `${number("DEADLINE_MS", 1500)}ms`;
const PAUSE_S = number("SLEEP_MS", 10) / 1000;
const READ = { consistency: setting("CONSISTENCY", "STRONG"), read_mode: "READ_YOUR_WRITES" };
const WRITE = {
  durability: setting("DURABILITY", "WAL_SYNC"),
  require_idempotency: setting("REQUIRE_IDEMPOTENCY", "true") === "true",
  ttl_ms: 0,
  if_version_equals: 0,
  if_not_exists: false,
};
const LIVED_WITH = ["OK", "NOT_LEADER", "SHARD_MOVED", "UNAVAILABLE", "TIMEOUT"];

const SCALE = number("SCALE", 1);
const stage = (seconds, target) => ({ duration: `${Math.max(1, Math.round(seconds * SCALE))}s`, target });

export const options = {
  scenarios: {
    mix: {
      executor: "ramping-vus",
      startVUs: 1,
      stages: [stage(10, 10), stage(30, 50), stage(10, 0)],
      gracefulRampDown: "5s",
    },
  },
  thresholds: {
    grpc_failures: ["rate<0.01"],
    grpc_req_duration: [`p(95)<${number("P95_MS_MAX", 75)}`],
  },
  summaryTrendStats: ["avg", "med", "p(90)", "p(95)", "p(99)", "max"],
};

const failures = new Rate("grpc_failures");
const answers = {};
for (const code of [...LIVED_WITH, "NOT_FOUND", "OTHER"]) {
  answers[code] = new Counter(`answered_${code}`);
}

const client = new grpc.Client();
client.load([setting("PROTO_DIR", "../../proto/kvdb")], "gateway.proto");
let connected = false;

function connect() {
  if (!connected) {
    client.connect(GATEWAY, { plaintext: true });
    connected = true;
  }
}

function call(method, requestId, key, more, alsoGood) {
  const request = Object.assign(
    { ctx: { request_id: requestId, tenant_id: "dev", principal: "k6" }, key: encoding.b64encode(key) },
    more,
  );
  const reply = client.invoke(`kvdb.gateway.KvGateway/${method}`, request, { timeout: DEADLINE });
  const code = reply.status === grpc.StatusOK && reply.message ? reply.message.status.code : "OTHER";
  (answers[code] || answers.OTHER).add(1);
  const good = LIVED_WITH.includes(code) || alsoGood.includes(code);
  failures.add(!good);
  if (!good) {
    console.warn(`${method} ${key}: gRPC ${reply.status} ${JSON.stringify(reply.error || reply.message)}`);
  }
}

export function setup() {
  connect();
  for (let i = 0; i < PRELOAD_KEYS; i++) {
    call("Put", `preload-${i}`, `k-${i}`, { value: VALUE, options: WRITE }, []);
  }
}

export default function () {
  connect();
  const key = `k-${Math.floor(Math.random() * KEYSPACE)}`;
  const requestId = `req-${exec.vu.idInTest}-${exec.vu.iterationInScenario}-${Date.now()}`;
  const draw = Math.random() * 100;
  if (draw < DELETE_PCT) {
    call("Delete", requestId, key, { options: WRITE }, ["NOT_FOUND"]);
  } else if (draw < DELETE_PCT + WRITE_PCT) {
    call("Put", requestId, key, { value: VALUE, options: WRITE }, []);
  } else {
    call("Get", requestId, key, { options: READ, head_only: false }, ["NOT_FOUND"]);
  }
  sleep(PAUSE_S);
}
