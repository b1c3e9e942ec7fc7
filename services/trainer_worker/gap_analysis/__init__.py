"""Gap analysis: flagged requests in clusters, and what is to be known of each."""
