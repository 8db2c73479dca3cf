"""Summary tokens (Kwai Summary Attention, arXiv:2604.24432) in a model that was taught them."""
