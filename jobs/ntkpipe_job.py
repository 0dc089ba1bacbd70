"""`ntkpipe` for schedulers that start a script: python jobs/ntkpipe_job.py COMMAND [group=choice ...] [setting=value ...]."""

from ntkpipe.cli.main import entry

if __name__ == "__main__":
    entry()
