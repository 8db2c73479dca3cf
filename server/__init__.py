"""The HTTP face: request field, header, usage, endpoints, metrics, command line. Knows no tensors."""
