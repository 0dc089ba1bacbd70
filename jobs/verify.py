"""`ntkpipe verify` for schedulers that start a script: python jobs/verify.py [group=choice ...] [setting=value ...]."""

import sys

from ntkpipe.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["verify", *sys.argv[1:]]))
