"""What the choices of one layer say: every figure with its null, its interval and what it was counted from."""
