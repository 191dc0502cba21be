"""`python -m fvaudit` is the command line."""

from fvaudit.cli import main


if __name__ == "__main__":
    main()
