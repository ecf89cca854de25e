"""Running a recipe: the graph of its stages, their order, their processes, and what is published as they end."""
