"""Train on verified shards: configuration, data order, model, method, engine, record."""
