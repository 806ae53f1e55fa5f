#!/bin/sh
# OpenAI's Python client against fasq-serve with a fixture. Usage: tests/clients/run.sh PYTHON, which has the package openai.
set -eu
python=$1
cd "$(dirname "$0")/../.."

log=$(mktemp)
target/debug/fasq-serve tests/fixtures/llama3-tiny-sharded --device cpu --port 0 --api-key secret 2>"$log" &
server=$!
trap 'kill $server 2>/dev/null || true; rm -f "$log"' EXIT

# The first line of the log is "http://ADDRESS/v1: ...", once the model is loaded.
for _ in $(seq 300); do
    url=$(sed -n 's|^\(http://[^ ]*/v1\): .*|\1|p' "$log")
    [ -z "$url" ] || break
    kill -0 $server
    sleep 0.1
done
"$python" tests/clients/openai_client.py "$url" secret
kill -TERM $server
wait $server
