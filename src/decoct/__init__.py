"""decoct: a large trained model in, a small fast one out, and the proof of what it cost."""
