"""`ntkpipe plan` for schedulers that start a script: python jobs/plan.py [group=choice ...] [setting=value ...]."""

import sys

from ntkpipe.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["plan", *sys.argv[1:]]))
