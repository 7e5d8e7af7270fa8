#!/usr/bin/env bash
# What to try once the cluster runs.
set -euo pipefail
gateway=${GATEWAY_PORT:-7000}
admin=${ADMIN_PORT:-8089}
cat <<TEXT

Flotta runs. Try:
  .venv/bin/flotta put --gateway 127.0.0.1:$gateway greeting hello
  .venv/bin/flotta get --gateway 127.0.0.1:$gateway greeting
  grpcurl -plaintext -d '{"key":"a2V5","value":"dmFs"}' localhost:$gateway kvdb.gateway.KvGateway/Put
  curl -H "X-Admin-Api-Key: \$(cat data/admin-api-key)" http://127.0.0.1:$admin/admin/cluster/summary
  make cluster-status      what runs        make logs       what it says
  make stop                data stays       make wipe-data  data goes
TEXT
