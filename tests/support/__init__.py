"""What several test modules share, and programs that run tests elsewhere; tests import from here,
never from each other."""
