"""Tests of the shipped readers and writers, each compared with another implementation where one exists."""
