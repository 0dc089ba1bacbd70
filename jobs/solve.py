"""`ntkpipe solve` for schedulers that start a script: python jobs/solve.py [group=choice ...] [setting=value ...]."""

import sys

from ntkpipe.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["solve", *sys.argv[1:]]))
