"""Readers of the public data that the embedded facts are made from."""
