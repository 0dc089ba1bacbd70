"""Experiment trackers for a run's progress and results, imported only when configured."""
