"""Where groups of runs are trained: on this machine, in worker processes."""
