"""`python -m ntkpipe`."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        # Python searches the working directory first, where a file could have the name of a library. This package is
        # already found.
        del sys.path[0]
    from ntkpipe.cli.main import entry

    entry()
