"""The Python surface: distill, label, prune, export and the recipe that runs."""
