"""What launchers start: torchrun, deepspeed or plain python with `launch/train.py CONFIG ...`."""

import sys

from pipeline.cli import run

if __name__ == "__main__":
    # The deepspeed launcher adds --local_rank=N; the environment says the same.
    run(["train", *(word for word in sys.argv[1:] if not word.startswith("--local_rank="))])
