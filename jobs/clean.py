"""`ntkpipe clean` for schedulers that start a script: python jobs/clean.py [group=choice ...] [setting=value ...]."""

import sys

from ntkpipe.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["clean", *sys.argv[1:]]))
