#!/usr/bin/env bash
# What is measured on one GPU.
#   benchmarks/gpu.sh            what the methods cost: ResNet-50, 224 pixels, bfloat16, channels_last, beside a plain
#                                torch loop and timm; under 10 minutes; what does not fit its memory is named, left out
#   IMAGES=cifar10-images.zip LABELS=CIFAR-10_human.pt benchmarks/gpu.sh findings
#                                what they are worth: CIFAR-10N worst, ResNet-34, 36 epochs each; hours. Stops saved
#                                after MINUTES=9 (with status 1), and the same command goes on
#   TOY=1 benchmarks/gpu.sh ...  the same on a CPU at toy size, a few minutes: that the script works; its figures mean
#                                nothing and go to build/
#   MICRO_BATCH=64 benchmarks/gpu.sh
# The first writes benchmarks/results/gpu.json (every sample) and gpu.md, the second finding-cifar10n.csv
# there. The network is used only if timm is missing.
set -euo pipefail

fail() {
    echo "gpu.sh: $1" >&2
    exit 2
}

task=${1:-costs}
[[ $# -le 1 && $task =~ ^(costs|findings)$ ]] \
    || fail "takes nothing or 'findings', besides TOY=1, MICRO_BATCH=N, IMAGES=ZIP, LABELS=FILE and MINUTES=N"
here=$PWD
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
[[ -x $python ]] || fail "no .venv: run make install"
toy=${TOY:-0}
if [[ $toy == 1 ]]; then
    export CUDA_VISIBLE_DEVICES=""
else
    "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())" || fail "no GPU here; TOY=1 tries it on a CPU"
    # One is enough, and the first in sight is used.
    export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"
fi

if [[ $task == findings ]]; then
    [[ -n ${IMAGES:-} && -n ${LABELS:-} ]] || fail "findings needs IMAGES=ZIP and LABELS=FILE; see the top of this file"
    [[ $IMAGES == /* ]] || IMAGES=$here/$IMAGES
    [[ $LABELS == /* ]] || LABELS=$here/$LABELS
    arguments=(large --images "$IMAGES" --labels "$LABELS")
    if [[ $toy == 1 ]]; then arguments+=(--toy); else arguments+=(--minutes "${MINUTES:-9}"); fi
    exec "$python" -m benchmarks.findings "${arguments[@]}"
fi

# Within the lock, so that nothing that is measured changes. Without it the run goes on and says so.
"$python" -c "import timm" 2> /dev/null \
    || .venv/bin/uv pip install --python "$python" --constraint requirements.lock timm \
    || echo "gpu.sh: timm could not be installed; the run goes on without it" >&2

if [[ $toy == 1 ]]; then
    out=build/benchmarks/toy
    # resnet18, since it is the smallest that timm has too.
    arguments=(--model resnet18 --size 32 --classes 10 --micro-batch "${MICRO_BATCH:-8}" --steps 1 --repeats 3
        --compiler aot_eager)
else
    out=benchmarks/results/gpu
    arguments=(--model resnet50 --size 224 --classes 1000 --micro-batch "${MICRO_BATCH:-128}" --steps 10 --repeats 7
        --warmup 5)
fi
mkdir -p "${out%/*}"
"$python" -m benchmarks.methods "${arguments[@]}" --precision bfloat16 --channels-last --peers --best \
    --json "$out.json" > "$out.md.part"
mv "$out.md.part" "$out.md"
cat "$out.md"
