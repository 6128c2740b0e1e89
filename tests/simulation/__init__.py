"""Central as it is, in a world that is not: virtual time, a broker and a chain with faults, one thread, one seed."""
