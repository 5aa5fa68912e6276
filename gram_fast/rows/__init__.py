"""Rows of files, data sets and standard input, each with its place: one reader for all commands."""
