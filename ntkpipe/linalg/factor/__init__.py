"""Cholesky factorisation of a stored matrix, tile by tile, and all that a factor answers."""
