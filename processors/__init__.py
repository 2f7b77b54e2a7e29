"""Outlast's processors: the functions that do the work, and the runtime that runs them."""
