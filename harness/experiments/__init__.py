"""Say what to run, as plain data: protocols, runs, grids, tasks, published figures. No disk, no clock, no torch."""
