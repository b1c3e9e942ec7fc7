"""Which experts were chosen at every token, in every layer: the table of it, where it comes from, what it says."""
