"""What the engines of one context share."""
