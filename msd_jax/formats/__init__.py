"""Readers of data sets, a file for each format."""
