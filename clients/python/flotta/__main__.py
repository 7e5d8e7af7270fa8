"""`python -m flotta` is the `flotta` command."""

from flotta.cli import main

if __name__ == "__main__":
    main()
