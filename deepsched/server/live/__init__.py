"""The live page at /: what the streams do, now.

page.html, page.css, page.js, lanes.js are served as they are, with nothing from elsewhere;
sampler.py reads the engines, feed.py sends what it read to all who look.
"""

from deepsched.server.live.page import routes

__all__ = ["routes"]
