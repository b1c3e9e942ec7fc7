"""What a release is worth on held-out text: systems read the same documents, and their losses are compared in pairs."""
