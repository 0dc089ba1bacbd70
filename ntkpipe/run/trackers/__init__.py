"""Where else a run's progress and results go: an experiment tracker each, imported only when asked for."""
