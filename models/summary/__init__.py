"""Summary tokens (Kwai summary attention, arXiv:2604.24432): training them, and the file that a model holds."""
