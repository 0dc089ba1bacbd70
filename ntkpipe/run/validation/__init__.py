"""`ntkpipe validate`: ensembles of finite networks, compared with a run's predictions."""
