"""Runs `program`: pytest takes no doctests from a file of this name."""

from tests.kit.s3_server.program import main

if __name__ == "__main__":
    main()
