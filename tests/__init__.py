"""The tests of stagger: a folder for each room of the package; its `__init__.py` says what it holds."""
