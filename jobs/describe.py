"""`ntkpipe describe` for schedulers that start a script: python jobs/describe.py [group=choice ...] [setting=value ...]."""

import sys

from ntkpipe.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["describe", *sys.argv[1:]]))
