"""Chosen parts of tables: rows, their order, columns, two-way tables, and several sweeps side by side."""
