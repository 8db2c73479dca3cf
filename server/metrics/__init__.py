"""Prometheus series, and what several API processes know put together."""
