"""C99 of integers."""
