"""From a model file to sessions."""
