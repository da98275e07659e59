"""Files of strangers and of ours: read without running anything in them, written whole or not at all."""
