"""Rows to reports: tables, figures, HTML, LaTeX, CSV, JSON, model cards and exported models."""
