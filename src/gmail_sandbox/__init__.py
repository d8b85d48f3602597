"""A Gmail look-alike for the demo, the tests and the drills: IMAP, OAuth endpoints and a control API on loopback.

It is built from Google's public documentation and from what others observed and published, never from Gmail
itself. What passes here may still meet a surprise there: a first run with a real account remains necessary.
It uses the standard library only and imports nothing from the rest of the product.
"""

from gmail_sandbox.backend import Credentials
from gmail_sandbox.background import RunningSandbox, running_sandbox
from gmail_sandbox.cli import main
from gmail_sandbox.server import PortTaken, Sandbox, SandboxSettings

__all__ = ["Credentials", "PortTaken", "RunningSandbox", "Sandbox", "SandboxSettings", "main", "running_sandbox"]
