"""Runs, storage engines, locks and claims on a real store: Ceph's object gateway, RGW."""
