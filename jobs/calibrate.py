"""`ntkpipe calibrate` for schedulers that start a script: python jobs/calibrate.py [group=choice ...] [setting=value ...]."""

import sys

from ntkpipe.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["calibrate", *sys.argv[1:]]))
