#!/usr/bin/env bash
# The methods on one GPU: ResNet-50, 224 pixels, bfloat16, channels_last, beside a plain torch loop and timm.
#   benchmarks/gpu.sh          one GPU, under 10 minutes; what does not fit its memory is named and left out
#   TOY=1 benchmarks/gpu.sh    the same on a CPU at toy size, under 2 minutes, with a quicker backend of torch.compile:
#                              that the script works; its figures mean nothing and go to build/benchmarks
#   MICRO_BATCH=64 benchmarks/gpu.sh
# Writes benchmarks/results/gpu.json (every sample) and gpu.md. The network is used only if timm is missing.
set -euo pipefail

fail() {
    echo "gpu.sh: $1" >&2
    exit 2
}

[[ $# -eq 0 ]] || fail "takes no arguments, only TOY=1 and MICRO_BATCH=N"
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
[[ -x $python ]] || fail "no .venv: run make install"

# Within the lock, so that nothing that is measured changes. Without it the run goes on and says so.
"$python" -c "import timm" 2> /dev/null \
    || .venv/bin/uv pip install --python "$python" --constraint requirements.lock timm \
    || echo "gpu.sh: timm could not be installed; the run goes on without it" >&2

if [[ ${TOY:-0} == 1 ]]; then
    export CUDA_VISIBLE_DEVICES=""
    out=build/benchmarks/toy
    # resnet18, since it is the smallest that timm has too.
    arguments=(--model resnet18 --size 32 --classes 10 --micro-batch "${MICRO_BATCH:-8}" --steps 1 --repeats 3
        --compiler aot_eager)
else
    "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())" || fail "no GPU here; TOY=1 tries it on a CPU"
    out=benchmarks/results/gpu
    # One is enough, and the first in sight is used.
    export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"
    arguments=(--model resnet50 --size 224 --classes 1000 --micro-batch "${MICRO_BATCH:-128}" --steps 10 --repeats 7
        --warmup 5)
fi
mkdir -p "${out%/*}"
"$python" -m benchmarks.methods "${arguments[@]}" --precision bfloat16 --channels-last --peers --best \
    --json "$out.json" > "$out.md"
cat "$out.md"
