"""Pages and cards about runs: reads their records only, needs no torch."""
