"""What operators look at: Grafana dashboards and Prometheus alert rules, generated from one source.

`python -m deploy.dashboards` writes the files, `--check` says which are stale.
"""
