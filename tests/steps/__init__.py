"""Readers and writers that ship, each against another implementation where there is one."""
