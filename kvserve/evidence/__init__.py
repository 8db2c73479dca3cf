"""What policies may read of a request beside its cache: queries, attention mass, moments, calibration, rotations."""
