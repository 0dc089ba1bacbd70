"""The stage that solves: one file per solver, the code that solvers share, and saved solutions."""
