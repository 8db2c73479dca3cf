"""Routes, bodies, errors and usage: what a client of the API meets."""
