"""Measurements of `bench/first_hour.py`, by part. Importing the package imports no torch."""
