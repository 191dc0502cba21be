"""Arrays to numbers with intervals: pure functions, no files, no printing."""
