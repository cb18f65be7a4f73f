"""The engine: requests in, events out; continuous batching over a bounded KV cache."""
