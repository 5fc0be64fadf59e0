"""Tables of rows: their columns, lines and cells, independent of the format."""
