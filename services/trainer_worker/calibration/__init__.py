"""Calibration of a release: what its router says of a prompt against what its mixture then loses."""
