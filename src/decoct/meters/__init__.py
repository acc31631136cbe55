"""Meters: what a model costs in time, memory, operations and bytes."""
