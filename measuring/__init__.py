"""What evals, bench and loadtests share: result files, runs that go on, a server of one's own, the command frame."""
