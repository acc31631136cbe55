"""The step that writes what a teacher says of every sample, once."""
