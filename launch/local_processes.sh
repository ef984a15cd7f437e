#!/usr/bin/env bash
# Trains, or evaluates, in several processes on this machine: a rehearsal of many hosts, or one process a GPU.
#
#   PROCESSES=2 launch/local_processes.sh --config=sm3det_convnext_t --workdir=runs/two
#
# Every argument but --dry_run goes to `sm3det train` (RingMoE: docs/ringmoe.md); --dry_run prints the commands and starts nothing.
# VERB       another one than train: evaluate
# PROCESSES  how many processes (required)
# DEVICES    simulated CPU devices of each (default 1); no meaning with PLATFORM=cuda
# PLATFORM   cpu (default) or cuda: process i sees GPU i
# PORT       of the coordinator (default: a free one)
# LOGS       folder for the output of all processes but 0, which prints here (default: a new one)
# Assumes: `sm3det` on the PATH. Ends with the exit code of the first process that fails, having
# stopped the others, and with 0 if none does. A SIGTERM is for all: they save, and the code is 143.
set -euo pipefail

: "${PROCESSES:?how many processes to start, such as PROCESSES=2}"
: "${DEVICES:=1}" "${PLATFORM:=cpu}" "${VERB:=train}"

_free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

_environment() { # of process $1, one VARIABLE=value a line
  echo "JAX_COORDINATOR_ADDRESS=localhost:$PORT"
  echo "JAX_NUM_PROCESSES=$PROCESSES"
  echo "JAX_PROCESS_ID=$1"
  echo "JAX_PLATFORMS=$PLATFORM"
  case $PLATFORM in
    cpu)
      echo "JAX_NUM_CPU_DEVICES=$DEVICES"
      echo "JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo"
      ;;
    cuda) echo "CUDA_VISIBLE_DEVICES=$1" ;;
    *)
      echo "PLATFORM=$PLATFORM: expected cpu or cuda" >&2
      return 2
      ;;
  esac
}

_start() { # process $1 with the arguments that follow
  local id=$1 variables
  shift
  variables=$(_environment "$id")
  mapfile -t variables <<<"$variables"
  local command=(env "${variables[@]}" sm3det "$VERB" "$@")
  if [[ $dry_run == yes ]]; then
    printf '%q ' "${command[@]}"
    echo
  elif [[ $id == 0 ]]; then
    "${command[@]}" &
  else
    "${command[@]}" >"$LOGS/process_$id.log" 2>&1 &
  fi
}

_stop_all() {
  local running
  running=$(jobs -pr)
  # shellcheck disable=SC2086 # one word a process
  [[ -z $running ]] || kill $running 2>/dev/null || true
}

# shellcheck source=dry_run.sh
source "$(dirname "$0")/dry_run.sh"
: "${PORT:=$(_free_port)}"
[[ $dry_run == yes ]] || : "${LOGS:=$(mktemp -d)}"
[[ $dry_run == yes ]] || mkdir -p "$LOGS"

trap _stop_all EXIT
trap 'exit 130' INT
stopping=no
trap 'stopping=yes; _stop_all' TERM
for ((id = 0; id < PROCESSES; id++)); do
  _start "$id" "${arguments[@]}"
done
[[ $dry_run == no ]] || exit 0

echo "$PROCESSES processes, coordinator localhost:$PORT, logs in $LOGS" >&2
for ((left = PROCESSES; left > 0; left--)); do
  code=0
  wait -n || code=$?
  if [[ $stopping == yes ]]; then
    wait
    exit 143
  fi
  if [[ $code != 0 ]]; then
    echo "a process ended with exit code $code; stopping the others; the last lines in $LOGS:" >&2
    find "$LOGS" -name 'process_*.log' -exec tail -v -n 5 {} + >&2
    exit "$code"
  fi
done
