"""What the cache, the client and the pipeline survive: tried, counted and printed by ``make stress``."""
