"""The command `decoct`: words to calls, and what it shows."""
