"""Python imports this when it starts; see loopback.py."""

import loopback

loopback.install()
