"""One drill from the healthy system to the healthy system; raises at the first promise that does not hold.

steady state ─▶ diagnosis on the healthy system ─▶ fault ─▶ symptoms ─▶ diagnosis ─▶ left alone, nothing heals ─▶
mitigation ─▶ verification ─▶ every message accounted for ─▶ the alerts of this section rang and are over, no other did
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path

from bench.crash_matrix.law import judge
from tests.drills.addresses import Addresses
from tests.drills.runbook import Procedure
from tests.drills.scenarios import scenarios
from tests.drills.scenarios.base import Healthy, Scenario
from tests.drills.steps import DrillFailed, lacking, left_running, run
from tests.drills.symptoms import LASTING, Looker
from tests.drills.world import World, running_world, watched
from tests.servers.processes import until

STEADY_SECONDS = 60.0
FEW = 20  # messages on their way at any moment
WELL_SECONDS = 90.0
SETTLE_SECONDS = 120.0
ALERT_SECONDS = 240.0
LOOK_SECONDS = 0.1


@dataclass
class Outcome:
    """What docs/drills.md tells of a drill. Seconds from the fault to the last symptom, from the remedy to recovery."""

    name: str
    title: str
    variant: str = ""
    detected: float | None = None
    symptoms: dict[str, float] = field(default_factory=dict)
    recovered: float | None = None
    in_flight: int = 0
    messages: int = 0
    alerts: bool = False
    ports: str = ""
    date: str = ""
    failure: str = ""

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def play(
    procedure: Procedure, folder: Path, addresses: Addresses, *, variant: str = "", alerts: bool = False
) -> Outcome:
    """Bring a world up and drill in it; what failed is in the outcome."""
    outcome = Outcome(procedure.name, procedure.title, variant, alerts=alerts)
    outcome.date = datetime.now(UTC).date().isoformat()
    known = scenarios()
    if procedure.scenario not in known:
        procedure.where.refuse(f"there is no scenario {procedure.scenario!r} in tests/drills/scenarios")
    scenario = known[procedure.scenario]()
    with ExitStack() as stack:
        world = stack.enter_context(
            running_world(folder, addresses, scenario.settings, scenario.python_path(folder / "bug"))
        )
        looker = Looker(world)
        try:
            if alerts:
                stack.enter_context(watched(world, folder, scenario.times))
            _Drill(procedure, scenario, world, looker, outcome, variant).play()
        except (AssertionError, OSError) as error:
            outcome.failure = f"{error}\n{looker.explain()}"
    return outcome


@dataclass
class _Drill:
    procedure: Procedure
    scenario: Scenario
    world: World
    looker: Looker
    outcome: Outcome
    variant: str

    def play(self) -> None:
        self._steady()
        with ExitStack() as terminals:
            if isinstance(self.scenario, Healthy):
                for phase in ("diagnosis", "mitigation", "verify", "afterwards"):
                    self._phase(phase, terminals)
            else:
                self._broken(terminals)
            self._conserved()
            self.scenario.finish(self.world)
            if self.world.prometheus:
                self._alerts_over()

    def _broken(self, terminals: ExitStack) -> None:
        self._healthy_pass()
        self.looker.mark()
        pids = self.world.pids()
        self.scenario.inject(self.world)
        self._symptoms()
        if self.world.prometheus:
            self._alerts_fire()
        self._phase("diagnosis", terminals)
        itself = self.procedure.heals == "itself"
        if not itself:
            self._left_alone()
            self.scenario.mend(self.world)
        self.outcome.in_flight = self.world.in_flight()
        started = time.monotonic()
        self._phase("mitigation", terminals)
        if itself:
            started = time.monotonic()
            self.scenario.heal(self.world)
        self._phase("verify", terminals)
        until(lambda: self.world.well(*self.scenario.crew), "all is well again", WELL_SECONDS)
        self.outcome.recovered = time.monotonic() - started
        if itself and self.world.pids() != pids:
            raise DrillFailed(f"{self.procedure.where}: it took a restart: {pids} became {self.world.pids()}")
        if self.looker.truncated():
            raise DrillFailed(f"{self.procedure.where}: what {self.looker.truncated()} held before the fault is gone")
        self._phase("afterwards", terminals)

    def _steady(self) -> None:
        world, scenario = self.world, self.scenario
        world.load.pause = scenario.pause
        scenario.prepare(world)
        world.load.deliver(scenario.first_mail)
        for stem in scenario.crew:
            world.start(stem)
        world.load.start()
        until(lambda: world.well(*scenario.crew), "all is well", STEADY_SECONDS)
        until(lambda: len(world.rows()) > scenario.first_mail, "mail flows", STEADY_SECONDS)
        until(lambda: world.in_flight() <= FEW, "the first rush is over", STEADY_SECONDS)
        if world.prometheus and world.notified:
            prometheus = world.prometheus
            until(
                lambda: (
                    {name for name in prometheus.firing() if not name.startswith("Disk")} == {"Watchdog"}
                    and prometheus.query("email_ingestion:mail_age:seconds")
                ),
                "no alert but the Watchdog",
                ALERT_SECONDS,
            )
            world.notified.heard.clear()

    def _healthy_pass(self) -> None:
        """Every diagnosis must tell health from the fault: it shows the one, and not the other."""
        for step in self.procedure.steps_of("diagnosis", self.variant):
            if step.skip:
                continue
            done = run(step, step.healthy, self.world)
            if not step.same and not lacking(step.fault, done, self.world):
                raise DrillFailed(
                    f"{step.where}: diagnosis step {step.id!r} shows the fault on a healthy system too\n"
                    f"$ {step.text}\n{done.output[-2500:]}"
                )

    def _symptoms(self) -> None:
        started, waiting = time.monotonic(), list(self.procedure.symptoms)
        while waiting:
            seen = [symptom for symptom in waiting if self.looker.shows(symptom)]
            passed = time.monotonic() - started
            self.outcome.symptoms |= {f"{each.kind}={each.value}": round(passed, 1) for each in seen}
            waiting = [symptom for symptom in waiting if symptom not in seen]
            late = [symptom for symptom in waiting if passed > symptom.within]
            if late:
                raise DrillFailed(f"not seen within {late[0].within:.0f} s: {late[0]}")
            if waiting:
                time.sleep(LOOK_SECONDS)
        self.outcome.detected = time.monotonic() - started

    def _left_alone(self) -> None:
        """What gets well by itself proves nothing of the mitigation."""
        time.sleep(self.scenario.hold)
        over = [each for each in self.procedure.symptoms if each.kind in LASTING and not self.looker.shows(each)]
        if over:
            raise DrillFailed(f"over without anybody's help: {over[0]}")

    def _phase(self, phase: str, terminals: ExitStack) -> None:
        for step in self.procedure.steps_of(phase, self.variant):
            if step.skip:
                continue
            if step.background:
                terminals.enter_context(left_running(step, self.world))
            else:
                run(step, step.fault, self.world)

    def _conserved(self) -> None:
        self.world.load.stop()
        until(self.world.settled, "every message has its end", SETTLE_SECONDS)
        self.outcome.messages = len(self.world.load.delivered)
        verdict = judge(self.world.look())
        if not verdict.holds:
            broken = dict(zip((each.name for each in fields(verdict)), astuple(verdict), strict=True))
            raise DrillFailed(f"messages are not where they belong: {broken}")

    def _alerts_fire(self) -> None:
        notified = self.world.notified
        assert notified
        told = lambda: {*notified.at("page"), *notified.at("day")}  # noqa: E731 - asked again and again
        until(lambda: self.scenario.fires <= told(), f"alerts ring: {set(self.scenario.fires)}", ALERT_SECONDS)

    def _alerts_over(self) -> None:
        """What the fault fires is over, and told to be; beside it nothing rang that leads to another section."""
        notified, prometheus, fires = self.world.notified, self.world.prometheus, self.scenario.fires
        assert notified
        assert prometheus
        allowed = fires | self.procedure.alerts | self.scenario.tolerates
        until(lambda: not fires & prometheus.firing().keys(), "the alerts are over", ALERT_SECONDS)
        until(
            lambda: fires <= {*notified.at("page", "resolved"), *notified.at("day", "resolved")},
            "the end of the alerts is told",
            ALERT_SECONDS,
        )
        rang = {name for name in (*notified.at("page"), *notified.at("day")) if not name.startswith("Disk")}
        if rang - allowed:
            raise DrillFailed(f"{self.procedure.where}: {rang - allowed} rang, which is another section's")
