"""A sandbox in a thread of its own, for tests and demos that are not asynchronous."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from gmail_sandbox.http_server import HOST
from gmail_sandbox.server import Sandbox, SandboxSettings
from gmail_sandbox.tokens import MAIL_SCOPE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from gmail_sandbox.account import DeliveryResult, GmailAccount
    from gmail_sandbox.backend import SandboxStats
    from gmail_sandbox.faults import Option
    from gmail_sandbox.message import Message

_Value = TypeVar("_Value")


class RunningSandbox:
    """A sandbox that runs in a thread of its own; every method may be called from any thread.

    Attributes:
        imap_host: Where IMAP listens, always loopback.
        imap_port: The port of IMAP.
        oauth_port: The port of the OAuth endpoints.
        control_port: The port of the control API.
        user: The address of the only account.
        client_id: The OAuth client that the token endpoint knows.
        client_secret: Its secret.
    """

    imap_host = HOST

    def __init__(self, sandbox: Sandbox, loop: asyncio.AbstractEventLoop) -> None:
        """Wrap a sandbox that has started in `loop`."""
        self._sandbox, self._loop = sandbox, loop
        self.imap_port, self.oauth_port, self.control_port = (
            sandbox.imap_port,
            sandbox.oauth_port,
            sandbox.control_port,
        )
        self.user = sandbox.backend.account.user
        credentials = sandbox.settings.credentials
        self.client_id, self.client_secret = credentials.client_id, credentials.client_secret

    @property
    def oauth_url(self) -> str:
        """Return the base address of the OAuth endpoints."""
        return f"http://{HOST}:{self.oauth_port}"

    @property
    def token_uri(self) -> str:
        """Return the address of the token endpoint."""
        return f"{self.oauth_url}/token"

    @property
    def auth_uri(self) -> str:
        """Return the address of the authorization page."""
        return f"{self.oauth_url}/auth"

    @property
    def control_url(self) -> str:
        """Return the base address of the control API."""
        return f"http://{HOST}:{self.control_port}"

    def call(self, action: Callable[[Sandbox], _Value]) -> _Value:
        """Run a function on the sandbox in the sandbox's own thread and return its result."""

        async def run() -> _Value:
            return action(self._sandbox)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(timeout=60)

    def deliver(
        self,
        raw: bytes,
        labels: Iterable[str] = ("\\Inbox",),
        flags: Iterable[str] = (),
        internaldate: int | None = None,
    ) -> DeliveryResult:
        r"""Deliver a message, or add the labels to the message that has its Message-ID already, as Gmail does.

        Args:
            raw: The message as RFC 5322 bytes; it is kept byte for byte.
            labels: Gmail's system labels such as `\Inbox` and labels of the user; `\Junk` and `\Trash` put it there.
            flags: IMAP flags such as `\Seen`.
            internaldate: When it arrived, in epoch milliseconds; now when it is None.
        """
        return self.call(lambda s: s.backend.account.deliver(raw, labels, flags, internaldate))

    def arm_fault(self, name: str, *, count: int | str | None = "default", **options: Option) -> None:
        """Arm a fault.

        Args:
            name: A name in `gmail_sandbox.faults.CATALOGUE`.
            count: How often it acts; None acts until it is cleared, "default" is what the catalogue says.
            options: The fault's own options.

        Raises:
            BadFault: There is no such fault, or an option is not one of its own.
        """
        self.call(lambda s: s.backend.faults.arm(name, count, options))

    def clear_faults(self, name: str | None = None) -> None:
        """Disarm one fault, or all of them."""
        self.call(lambda s: s.backend.faults.clear(name))

    def access_token(self, scope: str = MAIL_SCOPE) -> str:
        """Return a new access token."""
        return self.call(lambda s: s.backend.tokens.issue_access(scope)[0])

    def refresh_token(self, scope: str = MAIL_SCOPE) -> str:
        """Return a new refresh token."""
        return self.call(lambda s: s.backend.tokens.issue_refresh(scope, s.settings.credentials.client_id))

    def xoauth2(self) -> bytes:
        """Return the client's first message of SASL XOAUTH2 with a new access token, not encoded in base64."""
        return f"user={self.user}\x01auth=Bearer {self.access_token()}\x01\x01".encode()

    def authorized_user_info(self) -> dict[str, object]:
        """Return a new consent as google-auth writes it into a token file.

        `Credentials.from_authorized_user_info` would refresh it at Google, whatever its `token_uri` says.
        """
        return self.call(lambda s: s.authorized_user_info())

    def messages(self) -> list[Message]:
        """Return copies of all messages, oldest identity first."""
        return self.call(lambda s: [replace(m) for _, m in sorted(s.backend.account.messages.items())])

    def with_account(self, action: Callable[[GmailAccount], _Value]) -> _Value:
        """Run a function on the account in the sandbox's own thread and return its result."""
        return self.call(lambda s: action(s.backend.account))

    def with_stats(self, action: Callable[[SandboxStats], _Value]) -> _Value:
        """Run a function on the counters in the sandbox's own thread and return its result."""
        return self.call(lambda s: action(s.backend.stats))


async def _shut_down(sandbox: Sandbox) -> None:
    """Stop the sandbox and cancel the tasks left in its event loop."""
    await sandbox.stop()
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


@contextmanager
def running_sandbox(settings: SandboxSettings | None = None) -> Iterator[RunningSandbox]:
    """Run a sandbox in a background thread for as long as the context lasts."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="sandbox", daemon=True)
    thread.start()
    try:
        sandbox = Sandbox(settings or SandboxSettings())
        asyncio.run_coroutine_threadsafe(sandbox.start(), loop).result(timeout=30)
        try:
            yield RunningSandbox(sandbox, loop)
        finally:
            asyncio.run_coroutine_threadsafe(_shut_down(sandbox), loop).result(timeout=30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()
