"""Faults of the mail server and of the token."""

from __future__ import annotations

from gmail_sandbox.gameday import SCENARIOS
from tests.drills.scenarios.base import Scenario
from tests.drills.world import World


def arm(world: World, name: str) -> None:
    """Break the sandbox as `email-ingestion gameday` does."""
    for fault in SCENARIOS[name]:
        world.sandbox.arm_fault(fault.name, count=fault.count, **fault.options)


class ImapUnreachable(Scenario):
    """Nobody listens on the IMAP port, and the sessions that were open are ended."""

    name = "imap-unreachable"
    fires = frozenset({"ImapUnreachable"})
    crew = ("producer", "worker")

    def inject(self, world: World) -> None:
        arm(world, self.name)

    def heal(self, world: World) -> None:
        world.sandbox.clear_faults()


class LoopFailing(Scenario):
    """Somebody wrote a word where the cursor of the mailbox has a number."""

    name = "loop-failing"
    fires = frozenset({"LoopFailing"})
    tolerates = frozenset({"MailboxSilent", "FreshnessBudgetBurn"})  # ten minutes are half a minute of ours

    def inject(self, world: World) -> None:
        with world.redis.client() as client:
            (self._key,) = client.keys("*:cursor:*")
            self._before = client.hget(self._key, "uidvalidity")
            client.hset(self._key, "uidvalidity", "mine")

    def heal(self, world: World) -> None:
        with world.redis.client() as client:
            client.hset(self._key, "uidvalidity", self._before)


class TokenExpired(Scenario):
    """The owner took the consent back: no refresh token works any more, and the session ends."""

    name = "token-expired"
    fires = frozenset({"ReauthRequired"})
    crew = ("producer", "worker")

    def inject(self, world: World) -> None:
        tokens = world.sandbox.call(lambda s: list(s.backend.tokens._refresh))
        for token in tokens:
            world.sandbox.call(lambda s, token=token: s.backend.tokens.revoke(token))
        world.sandbox.arm_fault("session_expiry")


class BreakerOpen(Scenario):
    """The mail server takes connections and ends them at once."""

    name = "breaker-open"
    fires = frozenset({"ImapUnreachable"})  # the cause rings, and keeps CircuitBreakerOpen quiet
    crew = ("producer", "worker")

    def inject(self, world: World) -> None:
        arm(world, self.name)

    def heal(self, world: World) -> None:
        world.sandbox.clear_faults()


class QuarantinedMail(Scenario):
    """A message of the mailbox cannot be read by the server any more; somebody mends that."""

    name = "quarantined-mail"
    fires = frozenset({"MailQuarantined"})

    def inject(self, world: World) -> None:
        uid = len(world.sandbox.messages()) + 3
        world.sandbox.arm_fault("uid_system_error", count=None, uid=uid, bodies_only=True)

    def mend(self, world: World) -> None:
        world.sandbox.clear_faults()
