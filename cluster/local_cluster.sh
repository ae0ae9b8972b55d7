#!/usr/bin/env bash
# A real Ray cluster on one Linux machine, to try everything: a head without CPUs and raylets with them, each with an
# address of its own on the loopback interface, with token authentication. No other Ray on the machine is touched.
set -euo pipefail

usage="usage: cluster/local_cluster.sh start | env | kill N | stop

start    a head and RAYLETS raylets; prints the lines that let a shell use them
env      those lines once more
kill N   SIGKILL to all of raylet N, as if its machine had lost power
stop     ends what start began, and nothing else

Variables, with their defaults:
  RAYLETS         2                     machines besides the head
  RAYLET_CPUS     1                     CPUs of each
  OBJECT_STORE    100000000             bytes of shared memory of each
  DASHBOARD_PORT  8265                  where jobs are sent
  GCS_PORT        6399                  where nodes meet, and the next one; outside 10002-19999, which Ray's workers use
  AGENT_PORT      52365                 of the head's agent; the raylets take the next ones
  START_TIMEOUT   120                   seconds for each of them to start
  CLUSTER_STATE   /tmp/ssm-metarl-UID   process ids, token, logs (a short path: Ray puts sockets in it)"

state=${CLUSTER_STATE:-/tmp/ssm-metarl-$(id -u)}
raylets=${RAYLETS:-2}
dashboard_port=${DASHBOARD_PORT:-8265}
gcs_port=${GCS_PORT:-6399}
agent_port=${AGENT_PORT:-52365}

lines() {
  echo "export RAY_API_SERVER_ADDRESS=http://127.0.0.1:$dashboard_port RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$state/auth_token"
}

is_alive() {
  # A process id that was noted long ago may belong to something else by now.
  grep -aqs 'ray.start' "/proc/$1/cmdline"
}

# node NAME ARGUMENTS: a node in a session of its own, whose process id is also that of its session and group. Ray gives
# a node 30 seconds to start, which is not always enough on a busy machine: it has START_TIMEOUT, in as many attempts.
node() {
  local name=$1 deadline=$((SECONDS + ${START_TIMEOUT:-120})) pid
  shift
  while [ $SECONDS -lt $deadline ]; do
    setsid ray start "$@" --block --disable-usage-stats --object-store-memory="${OBJECT_STORE:-100000000}" \
      >"$state/$name.log" 2>&1 </dev/null &
    pid=$!
    echo $pid >"$state/$name.pid"
    while kill -0 $pid 2>/dev/null && [ $SECONDS -lt $deadline ]; do
      grep -qs 'Ray runtime started' "$state/$name.log" && return
      sleep 0.2
    done
    kill -KILL -- -$pid 2>/dev/null || true
  done
  echo "error: $name does not start; the end of $state/$name.log:" >&2
  tail -n 3 "$state/$name.log" >&2
  return 1
}

start() {
  if compgen -G "$state/*.pid" >/dev/null; then
    echo "error: $state knows of a cluster already; to end it: $0 stop" >&2
    exit 1
  fi
  umask 077
  mkdir -p "$state"
  rm -f "$state"/*.log
  python -c "import secrets; print(secrets.token_hex(32), end='')" >"$state/auth_token"
  trap stop EXIT
  node head --head --num-cpus=0 --node-ip-address=127.0.0.2 --port="$gcs_port" --ray-client-server-port=$((gcs_port + 1)) \
    --dashboard-host=127.0.0.1 --dashboard-port="$dashboard_port" --dashboard-agent-listen-port="$agent_port" \
    --temp-dir="$state/ray"
  local i
  for ((i = 1; i <= raylets; i++)); do
    node "raylet-$i" --address="127.0.0.2:$gcs_port" --node-ip-address="127.0.0.$((i + 2))" \
      --num-cpus="${RAYLET_CPUS:-1}" --dashboard-agent-listen-port=$((agent_port + i))
  done
  trap - EXIT
  echo "# a head and $raylets raylets of ${RAYLET_CPUS:-1} CPUs run on this machine; for a shell that is to use them:"
  lines
}

# SIGTERM first, so that nodes say goodbye; then SIGKILL to what is left of their groups.
stop() {
  local file pid
  for file in "$state"/*.pid; do
    [ -e "$file" ] || continue
    pid=$(cat "$file")
    is_alive "$pid" && kill -TERM "$pid"
  done
  for file in "$state"/*.pid; do
    [ -e "$file" ] || continue
    pid=$(cat "$file")
    for _ in $(seq 30); do
      is_alive "$pid" || break
      sleep 0.1
    done
    if is_alive "$pid" || [ ! -e "/proc/$pid" ]; then
      kill -KILL -- "-$pid" 2>/dev/null || true
    fi
    rm -f "$file"
  done
}

root=$(cd "$(dirname "$0")/.." && pwd)
command -v ray >/dev/null || PATH=$root/.venv/bin:$PATH # Jobs run the python of this PATH.
export PATH RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$state/auth_token RAY_USAGE_STATS_ENABLED=0
unset RAY_ADDRESS RAY_API_SERVER_ADDRESS RAY_AUTH_TOKEN
case ${1:-} in
  start | stop) "$1" ;;
  env) lines ;;
  kill) kill -KILL -- "-$(cat "$state/raylet-${2:?$usage}.pid")" ;;
  --help) echo "$usage" ;;
  *) echo "$usage" >&2 && exit 2 ;;
esac
