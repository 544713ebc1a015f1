"""Phantom radiographs: one chest CT, projected after random anatomy and the findings of a real report."""
