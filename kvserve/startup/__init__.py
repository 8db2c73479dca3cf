"""What is settled before the engine runs: vLLM's version, options, refusals, groups of layers, the model's facts."""
