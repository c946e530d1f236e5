"""A sweep from plan to summary: what is left to run, its order, its watchers, its rehearsal."""
