"""`adaptive-moe`: commands over the HTTP API, beside those of the local stack. Knows no database and no torch."""
