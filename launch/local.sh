#!/usr/bin/env bash
# One run on this machine: a process for each GPU, or two where there is none.
#   launch/local.sh CONFIG [--section.key VALUE ...]
#   NPROC=4 launch/local.sh CONFIG ...                    as many processes as you say
# Ctrl-C, SIGTERM and SIGUSR1 stop it, saved: exit status 0.
set -euo pipefail

fail() {
    echo "local.sh: $1" >&2
    exit 2
}

[[ $# -gt 0 && $1 != -* ]] || fail "usage: [NPROC=N] launch/local.sh CONFIG [--section.key VALUE ...]"
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." > /dev/null && pwd)
PATH="$root/.venv/bin:$PATH"
command -v torchrun > /dev/null || fail "no torchrun: run make install, or activate the environment that has it"

# torch counts what training will see: with CUDA_VISIBLE_DEVICES nvidia-smi would count too many.
NPROC=${NPROC:-$(python -c "import torch; print(torch.cuda.device_count() or 2)")}
[[ $NPROC =~ ^[1-9][0-9]*$ ]] || fail "NPROC = '$NPROC': want a number of processes, 1 or more"
run=$(python -m pipeline.configfile "$@") || exit
rm -f "$run/stopped"

# With job control torchrun is in a process group of its own: Ctrl-C comes here alone and is handed on, once.
set -m
torchrun --standalone --nproc-per-node "$NPROC" "$root/launch/train.py" "$@" &
child=$!
trap 'kill -TERM "$child" || true' TERM HUP
trap 'kill -INT "$child" || true' INT
trap 'mkdir -p "$run" && touch "$run/stop"' USR1 # torchrun would die of it

while true; do
    wait "$child" && status=0 || status=$?
    kill -0 "$child" 2> /dev/null || break # else it was a signal that ended the wait
done
# torchrun calls it a failure that it was asked to stop; the run says by this file that it was saved.
[[ ! -e $run/stopped ]] || status=0
exit "$status"
