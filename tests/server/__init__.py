"""`deepsched serve`, by programs that nobody here wrote where there are such."""
