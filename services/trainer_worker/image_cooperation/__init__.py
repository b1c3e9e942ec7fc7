"""The image experiment: eight experts on small pictures, their learned cooperation graph, and its report."""
