"""Record: one file a run, written atomically; the tables are derived from them. No torch."""
