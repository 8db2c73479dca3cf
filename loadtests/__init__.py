"""The server under load: `python -m loadtests` prints one table, writes JSON and draws the plots."""
