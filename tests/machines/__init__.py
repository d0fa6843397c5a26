"""Our own checks on emulated machines with many sockets, nodes and caches: __main__ says how."""
