"""Variances and covariances of test outputs, batch by batch, with every solver."""
