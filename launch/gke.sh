#!/usr/bin/env bash
# Trains on a TPU slice of a Google Kubernetes Engine cluster, as launch/gke_jobset.yaml says.
#
#   launch/gke.sh run --config=sm3det_convnext_t --workdir=/bucket/runs/t --config.data_root=/bucket/data
#   launch/gke.sh tail
#   launch/gke.sh delete
#
# Arguments of run go to `sm3det train` (RingMoE: docs/ringmoe.md); --dry_run prints every command, and the filled-in YAML.
# NAME             of the run, such as sm3det-t
# IMAGE            (run) container image: docker build -f launch/Dockerfile -t IMAGE . && docker push IMAGE
# BUCKET           (run) Cloud Storage bucket, mounted at /bucket; workdir and data go there
# ACCELERATOR      (run) of the node pool: tpu-v5-lite-podslice, tpu-v6e-slice or tpu-v5p-slice
# TOPOLOGY         (run) of the node pool, such as 16x16
# CHIPS            a node (default 4)
# SERVICE_ACCOUNT  Kubernetes account that may use the bucket (default: default)
# Assumes: kubectl with the cluster as its context; JobSet and the GCS FUSE driver in the cluster.
# With xpk the same training is
#   xpk workload create --cluster=CLUSTER --workload=NAME --tpu-type=v5litepod-256 --num-slices=1 \
#     --docker-image=IMAGE --max-restarts=100 --command='sm3det train --config=... --workdir=...'
set -euo pipefail

_yaml() { # filled in; a name without a value is an error
  python3 -c '
import json, os, string, sys
text = open(sys.argv[1]).read()
print(string.Template(text).substitute(os.environ, ARGUMENTS=json.dumps(sys.argv[2:])), end="")
' "$(dirname "$0")/gke_jobset.yaml" "$@"
}

run() {
  : "${IMAGE:?container image that has sm3det, see launch/Dockerfile}"
  : "${BUCKET:?name of the Cloud Storage bucket for workdir and data}"
  : "${ACCELERATOR:?kind of TPU of the node pool, such as tpu-v5-lite-podslice}"
  : "${TOPOLOGY:?topology of the node pool, such as 16x16}"
  : "${CHIPS:=4}" "${SERVICE_ACCOUNT:=default}"
  if [[ ! $TOPOLOGY =~ ^[0-9]+(x[0-9]+)+$ ]] || ((${TOPOLOGY//x/*} % CHIPS)); then
    echo "TOPOLOGY=$TOPOLOGY: expected numbers such as 16x16, their product a multiple of CHIPS=$CHIPS" >&2
    return 2
  fi
  NODES=$((${TOPOLOGY//x/*} / CHIPS))
  export NAME IMAGE BUCKET ACCELERATOR TOPOLOGY CHIPS SERVICE_ACCOUNT NODES
  local yaml
  yaml=$(_yaml "$@")
  _do kubectl apply -f - <<<"$yaml"
  [[ $dry_run == no ]] || echo "$yaml"
}

tail_log() {
  local pods=jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0
  _do kubectl wait --for=condition=Ready --timeout=-1s pod -l "$pods"
  _do kubectl logs -f --tail=50 -c train -l "$pods"
}

delete() {
  _do kubectl delete jobset "$NAME"
}

# shellcheck source=dry_run.sh
source "$(dirname "$0")/dry_run.sh"
verb=${arguments[0]:-}
case $verb in
  run | delete) ;;
  tail) verb=tail_log ;;
  *) sed -n 's/^#   \(launch.*\)/\1/p' "$0" >&2 && exit 2 ;;
esac
: "${NAME:?name of the run, such as sm3det-t}"
"$verb" "${arguments[@]:1}"
