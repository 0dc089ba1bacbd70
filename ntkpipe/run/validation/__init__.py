"""`ntkpipe validate`: ensembles of finite networks beside a run's predictions."""
