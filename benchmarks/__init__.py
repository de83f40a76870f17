"""Runnable comparisons; they print tables and never assert a time."""
