"""`python -m ntkpipe`."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        # Python puts the working directory first: a file there that is called like a library would be taken for it. This
        # package is found already, and its modules with it.
        del sys.path[0]
    from ntkpipe.cli.main import entry

    entry()
