"""`python -m ntkpipe`."""

from ntkpipe.cli.main import entry

if __name__ == "__main__":
    entry()
