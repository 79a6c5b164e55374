"""Runs `program`, because pytest does not collect doctests from a file named __main__.py."""

from tests.kit.s3_server.program import main

if __name__ == "__main__":
    main()
