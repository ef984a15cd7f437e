# shellcheck shell=bash
# What launchers share. Sourced with a script's arguments, it takes --dry_run out of them: `dry_run`
# is yes or no, `arguments` are the rest. (sbatch copies its script, so that one stands alone.)
dry_run=no
# shellcheck disable=SC2034 # for the script
arguments=()
for argument in "$@"; do
  if [[ $argument == --dry_run ]]; then dry_run=yes; else arguments+=("$argument"); fi
done

_do() { # runs a command, or prints it
  if [[ $dry_run == yes ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
