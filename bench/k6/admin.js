// Operators at the admin service, from one to twenty-five and back: each creates the shards once more (8, of 2 replicas),
// registers a node once more, and reads a node's health, the summary, the nodes and the shards. All of it must be 2xx.
//
// From the environment: ADMIN (a base URL), ADMIN_API_KEY, RUN_SHARD_INIT NUM_SHARDS REPLICATION_FACTOR SLEEP_S
// P95_MS_MAX; SCALE shortens the stages. The nodes are those that the cluster has, at the addresses that it has of them.

import http from "k6/http";
import { check, fail, sleep } from "k6";

const setting = (name, otherwise) => __ENV[name] || otherwise;
const number = (name, otherwise) => Number(setting(name, otherwise));

const ADMIN = setting("ADMIN", "http://localhost:8089");
const HEADERS = { "X-Admin-Api-Key": setting("ADMIN_API_KEY", ""), "Content-Type": "application/json" };
const RUN_SHARD_INIT = setting("RUN_SHARD_INIT", "true") === "true";
const SIZES = { num_shards: number("NUM_SHARDS", 8), replication_factor: number("REPLICATION_FACTOR", 2) };
const PAUSE_S = number("SLEEP_S", 0.2);

const SCALE = number("SCALE", 1);
const stage = (seconds, target) => ({ duration: `${Math.max(1, Math.round(seconds * SCALE))}s`, target });

export const options = {
  scenarios: {
    operators: {
      executor: "ramping-vus",
      startVUs: 1,
      stages: [stage(10, 5), stage(20, 25), stage(10, 0)],
      gracefulRampDown: "5s",
    },
  },
  thresholds: {
    http_req_failed: ["rate<0.01"],
    http_req_duration: [`p(95)<${number("P95_MS_MAX", 750)}`],
    checks: ["rate==1"],
  },
  summaryTrendStats: ["avg", "med", "p(90)", "p(95)", "p(99)", "max"],
};

function get(path, name) {
  const reply = http.get(ADMIN + path, { headers: HEADERS, tags: { name: name || path } });
  check(reply, { [`GET ${name || path} is 2xx`]: (r) => r.status >= 200 && r.status < 300 });
  return reply;
}

function post(path, body) {
  const reply = http.post(ADMIN + path, JSON.stringify(body), { headers: HEADERS, tags: { name: path } });
  const good = check(reply, { [`POST ${path} is 2xx`]: (r) => r.status >= 200 && r.status < 300 });
  if (!good) {
    console.warn(`POST ${path}: ${reply.status} ${reply.body}`);
  }
}

export function setup() {
  const reply = http.get(`${ADMIN}/admin/nodes`, { headers: HEADERS });
  if (reply.status !== 200 || reply.json().length === 0) {
    fail(`the nodes cannot be read: ${reply.status} ${reply.body}`);
  }
  return reply.json().map((node) => ({ node_id: node.node_id, address: node.address, zone: node.zone }));
}

export default function (nodes) {
  const node = nodes[__ITER % nodes.length];
  if (RUN_SHARD_INIT) {
    post("/admin/config/shard-init", SIZES);
  }
  post("/admin/nodes", node);
  get(`/admin/nodes/${node.node_id}/health`, "/admin/nodes/{id}/health");
  get("/admin/cluster/summary");
  get("/admin/nodes");
  get("/admin/shards");
  sleep(PAUSE_S);
}
