"""fit, the one training loop."""
