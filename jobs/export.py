"""`ntkpipe export` for schedulers that start a script: python jobs/export.py [group=choice ...] [setting=value ...]."""

import sys

from ntkpipe.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
