"""Speed of kvserve against stock vLLM: `python -m bench` prints one table and writes JSON."""
