"""The canary: a share of the compressed answers is judged with the full cache while the engine is idle."""
