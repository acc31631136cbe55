"""Carrying a recipe out: which steps run, in which folders, and what they measured."""
