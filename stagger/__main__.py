"""`python -m stagger` is the command `stagger`."""

from stagger.cli.main import main

if __name__ == "__main__":
    main()
