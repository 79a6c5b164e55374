"""Tools of the tests (an S3 server, hosts and claims of blocks, steps), and the tests of these tools."""
