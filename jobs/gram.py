"""`ntkpipe gram` for schedulers that start a script: python jobs/gram.py [group=choice ...] [setting=value ...]."""

import sys

from ntkpipe.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["gram", *sys.argv[1:]]))
