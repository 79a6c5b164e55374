"""Launches, retries and cancels runs, and ends their stages. Only cli and api build on this package."""
