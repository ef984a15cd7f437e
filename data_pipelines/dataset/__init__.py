"""Data sets in the formats that people have: converted, divided into splits, cut into patches."""
