"""The training loop and what it stands on: processes, DeepSpeed, schedules, checkpoints, evaluation."""
