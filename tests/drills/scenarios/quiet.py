"""Faults after which no mail comes although nothing is broken here."""

from __future__ import annotations

from tests.drills.scenarios.base import RESTARTED, Scenario
from tests.drills.world import World


class MailboxSilent(Scenario):
    """Somebody paused the producer for half a day and forgot."""

    name = "mailbox-silent"
    fires = frozenset({"Paused"})  # and keeps MailboxSilent quiet
    tolerates = RESTARTED

    def inject(self, world: World) -> None:
        done = world.shell("email-ingestion pause producer --ttl 12h --all")
        assert done.rc == 0, done.output


class Throttled(Scenario):
    """Too many connections to the account: the server refuses every login."""

    name = "throttled"
    fires = frozenset({"ImapThrottled"})
    tolerates = frozenset({"ImapUnreachable", "CircuitBreakerOpen", "MailboxSilent"})  # until the cause silences them

    def inject(self, world: World) -> None:
        world.sandbox.arm_fault("too_many_connections", count=None)
        world.sandbox.arm_fault("session_expiry")

    def heal(self, world: World) -> None:
        world.sandbox.clear_faults()


class UnusualMail(Scenario):
    """A sender's new software writes a line into the header that is no field, until it is mended there."""

    name = "unusual-mail"
    fires = frozenset({"DefectsHigh"})
    tolerates = frozenset({"MailVolumeHigh"})  # the drill's mail comes within an hour

    def inject(self, world: World) -> None:
        world.load.headers = "this line is no field\r\n"

    def mend(self, world: World) -> None:
        world.load.headers = ""
