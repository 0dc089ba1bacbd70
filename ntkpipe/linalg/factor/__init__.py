"""Cholesky factorisation of a stored matrix, tile by tile, and computations with the factor."""
