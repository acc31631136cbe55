"""Steps that write files to ship, and those that measure them."""
