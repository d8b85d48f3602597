"""A Gmail look-alike for the demo, the tests and the drills: IMAP, OAuth endpoints and a control API on loopback.

It is built from Google's public documentation and from observations that others published, never from Gmail itself. A
program that passes here may still meet a surprise there: a first run with a real account remains necessary.
It imports nothing of `email_ingestion`. docs/gmail-sandbox.md tells how to use it, also in the tests of other programs.
"""

from gmail_sandbox.backend import Credentials
from gmail_sandbox.background import RunningSandbox, running_sandbox
from gmail_sandbox.cli import main
from gmail_sandbox.server import PortTaken, Sandbox, SandboxSettings

__all__ = ["Credentials", "PortTaken", "RunningSandbox", "Sandbox", "SandboxSettings", "main", "running_sandbox"]
