"""The targets, a file each: see fuzz."""
