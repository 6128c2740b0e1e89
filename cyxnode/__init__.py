"""A worker of a Cyx network (`python -m cyxnode`): takes runs, trains each in a process of its own."""
