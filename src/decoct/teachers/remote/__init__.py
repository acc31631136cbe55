"""Teachers that answer somewhere else: another process, a Ray cluster, a server, a black box; asked ahead of time."""
