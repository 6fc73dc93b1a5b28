"""`python -m racm3`: the command line, as `racm3`."""

from .cli import main

if __name__ == "__main__":
    main()
