"""The solver's stage: a file per solver, what they share, and what is kept of a solve."""
