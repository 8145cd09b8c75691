"""Raw dataset -> verified webdataset shards. Knows nothing of torch.distributed or of models."""
