"""Small models of many families with random weights, each compared with transformers."""
