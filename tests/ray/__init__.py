"""On a real Ray of this machine: python -m pytest -m ray tests/ray, with deepsched[ray,serve]."""
