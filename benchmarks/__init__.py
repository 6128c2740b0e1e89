"""Our figures, measured: one file per number we promise."""
