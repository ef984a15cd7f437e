#!/usr/bin/env bash
# Trains on a Cloud TPU slice of any size, from one chip to a pod: every worker runs the same command.
#
#   launch/tpu_pod.sh create                      asks for a slice, waits until it is there
#   launch/tpu_pod.sh setup                       this commit, its Python and the bucket on all workers
#   launch/tpu_pod.sh run --config=sm3det_convnext_t --workdir=bucket/runs/t
#   launch/tpu_pod.sh tail                        follows worker 0; ends with training, and its exit code
#   launch/tpu_pod.sh stop                        SIGTERM to all workers: they save, and end with 143
#   launch/tpu_pod.sh delete                      the slice, and the request for it
#   launch/tpu_pod.sh keep --config=... --workdir=...    all of it, and again after each preemption
#
# Arguments of run and keep go to `sm3det train` (RingMoE: docs/ringmoe.md); --dry_run prints every command and runs none.
# TPU_NAME      name of the slice: one to be made, or (without create and delete) one you have
# ZONE          its zone, such as us-west4-a
# PROJECT       your Google Cloud project
# ACCELERATOR   (create) kind and size, such as v5litepod-256, v6e-256 or v5p-1024
# RUNTIME       (create) image of its VMs: v2-alpha-tpuv5-lite, v2-alpha-tpuv6e or v2-alpha-tpuv5
# SPOT          (create) yes: cheaper, may be preempted (default no)
# BUCKET        (setup) Cloud Storage bucket, at ~/bucket of every worker; workdir and data go there.
#               With hierarchical namespace: a checkpoint then appears as a whole or not at all
# POLL          seconds between looks at the queue (default 30)
# Assumes: gcloud, logged in; workers that reach the internet. `setup` installs gcsfuse on them by
# apt-get where it is missing, and Python 3.12 in ~/sm3det_env.
set -euo pipefail

_usage() {
  sed -n 's/^#   \(launch.*\)/\1/p' "$0" >&2
  exit 2
}

_queue() { # verb, arguments...
  gcloud compute tpus queued-resources "$1" "$TPU_NAME" "${where[@]}" "${@:2}"
}

_on() { # worker or all, shell command
  _do gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${where[@]}" --worker="$1" --command="$2"
}

_state() { # of the request: ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, .. or NONE
  _queue describe --format='value(state.state)' 2>/dev/null || echo NONE
}

create() {
  : "${ACCELERATOR:?kind and size of the slice, such as v5litepod-256}"
  : "${RUNTIME:?image of the VMs, such as v2-alpha-tpuv5-lite}"
  local spot=() state
  [[ $SPOT != yes ]] || spot=(--spot)
  _do gcloud compute tpus queued-resources create "$TPU_NAME" "${where[@]}" \
    --node-id="$TPU_NAME" --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" "${spot[@]}"
  [[ $dry_run == no ]] || return 0
  while state=$(_state) && [[ $state != ACTIVE ]]; do
    if [[ $state == FAILED || $state == SUSPEND* ]]; then
      echo "the request $TPU_NAME is $state" >&2
      return 1
    fi
    sleep "$POLL"
  done
}

setup() {
  : "${BUCKET:?name of the Cloud Storage bucket for workdir and data}"
  local folder
  folder=$(mktemp -d)
  _do git -C "$(dirname "$0")/.." archive --format=tar.gz --output="$folder/sm3det_jax.tar.gz" HEAD
  _do gcloud compute tpus tpu-vm scp "$folder/sm3det_jax.tar.gz" "$TPU_NAME": "${where[@]}" --worker=all
  rm -rf "$folder"
  _on all 'mkdir -p sm3det_jax bucket && tar -xzf sm3det_jax.tar.gz -C sm3det_jax'
  _on all 'python3 -m pip install -q --user uv && python3 -m uv venv -q --clear --python=3.12 sm3det_env'
  _on all 'python3 -m uv pip install -q --python=sm3det_env/bin/python "./sm3det_jax[tpu]"'
  _on all "command -v gcsfuse >/dev/null || { $GCSFUSE; }"
  _on all "mountpoint -q bucket || gcsfuse --implicit-dirs --rename-dir-limit=1000000 $BUCKET bucket"
}

run() {
  local arguments
  arguments=$(printf ' %q' "$@")
  # detached, so that it outlives the connection; a second start finds the first
  _on all "kill -0 \$(cat sm3det.pid 2>/dev/null) 2>/dev/null && { echo already running; exit; }
rm -f sm3det.exit
JAX_NUM_PROCESSES=\$($WORKERS) || exit
export JAX_NUM_PROCESSES
setsid nohup bash -c '\"\$@\"; echo \$? >sm3det.exit' - sm3det_env/bin/sm3det train$arguments \
>>sm3det.log 2>&1 </dev/null &
echo \$! >sm3det.pid"
}

# shellcheck disable=SC2016 # the worker evaluates them
tail_log() {
  _on 0 'tail -n 50 -F --pid="$(cat sm3det.pid)" sm3det.log; exit "$(cat sm3det.exit)"'
}

# shellcheck disable=SC2016
stop() {
  _on all 'pkill -TERM --parent "$(cat sm3det.pid)"'
}

delete() {
  _do gcloud compute tpus queued-resources delete "$TPU_NAME" "${where[@]}" --force --quiet
}

keep() { # a preempted slice is gone for good: another one takes its name and goes on
  local code state
  while true; do
    state=NONE
    [[ $dry_run == yes ]] || state=$(_state)
    if [[ $state == SUSPENDING ]]; then
      sleep "$POLL"
      continue
    elif [[ $state != ACTIVE ]]; then
      [[ $state == NONE ]] || delete
      create
      setup
    fi
    code=0
    { run "$@" && tail_log; } || code=$?
    # 143: saved on SIGTERM; 255: the worker cannot be reached, so it is gone, or the network was
    [[ $code == 143 || $code == 255 ]] || return "$code"
    echo "worker 0 ended with $code; looking after $TPU_NAME" >&2
    sleep "$POLL"
  done
}

# Where the VM's own metadata list the slice's workers, separated by commas.
ATTRIBUTES=http://metadata.google.internal/computeMetadata/v1/instance/attributes
WORKERS="curl -sf -H Metadata-Flavor:Google $ATTRIBUTES/worker-network-endpoints | tr , '\\n' | grep -c ."
KEY=https://packages.cloud.google.com/apt/doc/apt-key.gpg
LIST='deb [signed-by=/usr/share/keyrings/gcsfuse.asc] https://packages.cloud.google.com/apt'
GCSFUSE="curl -sf $KEY | sudo tee /usr/share/keyrings/gcsfuse.asc >/dev/null && \
echo \"$LIST gcsfuse-\$(lsb_release -cs) main\" | sudo tee /etc/apt/sources.list.d/gcsfuse.list && \
sudo apt-get -qq update && sudo apt-get -qq install gcsfuse"

# shellcheck source=dry_run.sh
source "$(dirname "$0")/dry_run.sh"
verb=${arguments[0]:-}
case $verb in
  create | setup | run | stop | delete | keep) ;;
  tail) verb=tail_log ;;
  *) _usage ;;
esac
: "${TPU_NAME:?name of the slice}"
: "${ZONE:?zone of the slice, such as us-west4-a}"
: "${PROJECT:?your Google Cloud project}"
: "${SPOT:=no}" "${POLL:=30}"
where=(--zone="$ZONE" --project="$PROJECT")
"$verb" "${arguments[@]:1}"
