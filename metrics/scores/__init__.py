"""The scores: one file each, with what several of them share (moments, neighbours)."""
