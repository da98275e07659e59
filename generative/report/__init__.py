"""A page to read runs in: scores with their protocol, sample grids, curves, and how to do it again."""
