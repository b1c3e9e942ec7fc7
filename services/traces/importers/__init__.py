"""Recordings of routing that others made, as traces: one file a format, all listed in `formats`."""
