"""Drawings of the figures with matplotlib, for the page, for notebooks and for papers."""
