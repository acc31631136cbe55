"""The soft-label store: what a teacher said about each view of each sample, kept on disk."""
