"""Recipe, its graph, and its file."""
