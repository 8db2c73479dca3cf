"""The canary: a share of the compressed answers, judged at full cache while nobody needs the engine."""
