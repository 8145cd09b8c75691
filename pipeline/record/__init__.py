"""What a run writes while it trains: metrics.jsonl, the console, wandb."""
