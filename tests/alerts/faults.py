"""Every alert's own fault, and the faults of its neighbours in which it must be silent."""

from __future__ import annotations

from tests.alerts.series import (
    BACKUP,
    CANARY,
    CONSENT,
    LAST_SYNC,
    MAIL_AGE,
    MEMORY,
    NEW_ERRORS,
    OLD_ERRORS,
    OLDEST_OWED,
    Fault,
    both,
    frozen,
    gone,
    grows,
    latency,
    level,
    now,
    now_and_then,
    producer,
    started,
    up,
    worker,
)

LONG = 400  # minutes: the six hours a slow burn remembers, and some

FLOW = (
    Fault("mail waits for a quarter of an hour", {MAIL_AGE: frozen}, 15, "FreshnessBudgetBurn P1"),
    Fault("mail waits for four minutes", {MAIL_AGE: frozen}, 4, ""),
    Fault("mail is late again and again", {MAIL_AGE: now_and_then(9, 180)}, 600, "FreshnessBudgetBurnSlow P3", LONG),
    Fault("the producer and what it knows are gone", {MAIL_AGE: gone}, 20, "FreshnessBudgetBurn P1"),
    Fault(
        "every thirtieth message dies",
        {worker("dlq_messages_total", 'reason="permanent"'): grows(0.9)},
        40,
        "SuccessBudgetBurn P2 SuccessBudgetBurnSlow P3",
        LONG,
    ),
    Fault(
        "every two hundredth message dies",
        {worker("dlq_messages_total", 'reason="permanent"'): grows(0.13)},
        80,
        "SuccessBudgetBurnSlow P3",
        LONG,
    ),
    Fault(
        "three of five messages of a quiet hour die",
        {
            worker("dlq_messages_total", 'reason="permanent"'): grows(0.05),
            worker("emails_processed_total"): grows(0.03),
        },
        60,
        "",
    ),
    Fault(
        "messages die in a flood",
        {worker("dlq_messages_total", 'reason="permanent"'): grows(3)},
        8,
        "DlqGrowing P2 SuccessBudgetBurn P2",
        LONG,
    ),
    Fault("an operator buries messages", {worker("dlq_messages_total", 'reason="operator"'): grows(30)}, 20, ""),
    Fault("a dead letter is forgotten", {worker("dlq_oldest_timestamp_seconds"): level(-700_000)}, 65, "DlqStale P4"),
    Fault("a backlog", both("stream_depth", level(60)), 8, "QueueBacklogWarning P3"),
    Fault("a great backlog", both("stream_depth", level(500)), 8, "QueueBacklogWarning P3 QueueBacklogCritical P2"),
    Fault("a burst", both("stream_depth", level(500)), 3, ""),
    Fault("a trial message does not come through", {CANARY: frozen}, 20, "CanaryMissing P2"),
    Fault("no trial messages are sent", {CANARY: gone}, 20, ""),
    Fault("a stuck message", {worker("stream_oldest_pending_timestamp_seconds"): frozen}, 20, "PendingStuck P2"),
    Fault(
        "every sixth attempt fails",
        {worker("emails_failed_total", 'error_type="SinkUnavailable"'): grows(6)},
        10,
        "ErrorRateHigh P3",
    ),
    Fault(
        "every second attempt fails",
        {worker("emails_failed_total", 'error_type="SinkUnavailable"'): grows(30)},
        12,
        "ErrorRateHigh P3 ErrorRateVeryHigh P2",
    ),
    Fault(
        "the only two attempts of a quiet mailbox fail",
        {
            worker("emails_failed_total", 'error_type="SinkUnavailable"'): grows(0.5),
            worker("emails_processed_total"): grows(0),
        },
        10,
        "",
    ),
    Fault("a slow sink", {latency("1.0"): grows(0)}, 12, "SlowProcessing P3"),
    Fault("workers do things twice", {worker("duplicates_total"): grows(5)}, 20, "DuplicatesRising P3", 45),
    Fault("a message was found twice", {worker("duplicates_total"): grows(0.1)}, 20, "", 45),
)

PROCESSES = (
    Fault(
        "nothing runs",
        {up("producer"): level(0), up("worker"): level(0)},
        3,
        "AllDown P1 ProducerDown P1 WorkerDown P2",
    ),
    Fault("the producer is killed", {up("producer"): level(0)}, 3, "ProducerDown P1"),
    Fault("the producer was never started", {up("producer"): gone}, 8, "ProducerDown P1"),
    Fault("one of the workers is killed", {up("worker"): level(0)}, 3, "WorkerDown P2"),
    Fault(
        "the last worker is killed",
        {up("worker"): level(0)} | both("active_workers", level(0)),
        3,
        "WorkerDown P2 NoWorkers P1",
    ),
    Fault(
        "one of the workers of another host is dead",
        both("missing_processes", level(1), 'kind="worker"'),
        5,
        "ProcessMissing P2",
    ),
    Fault("a worker is restarted", both("missing_processes", level(1), 'kind="worker"'), 2, ""),
    Fault("the workers of another host are gone", both("active_workers", level(0)), 3, "NoWorkers P1"),
    Fault(
        "a loop hangs",
        {producer("loop_last_iteration_timestamp_seconds", 'loop="collect"'): frozen},
        8,
        "LoopStalled P1",
    ),
    Fault("a loop begins to fail over something new", {NEW_ERRORS: grows(2)}, 4, "LoopFailing P3", 25),
    Fault("a loop that failed before fails once more", {OLD_ERRORS: grows(1)}, 4, "LoopFailing P3", 25),
    Fault("a process restarts again and again", {started("worker"): now()}, 5, "CrashLooping P1", 25),
    Fault("memory leaks", {MEMORY: level(2e9)}, 8, "MemoryHigh P3"),
)

DEPENDENCIES = (
    Fault("Redis is down", both("dependency_up", level(0), 'dependency="redis"'), 3, "RedisDown P1"),
    Fault("one process lost its way to Redis", {worker("dependency_up", 'dependency="redis"'): level(0)}, 3, ""),
    Fault("Redis fills up", both("redis_memory_used_bytes", level(9e6)), 8, "RedisMemoryHigh P2"),
    Fault("Redis has no limit", both("redis_memory_max_bytes", level(0)), 8, ""),
    Fault("Redis throws keys away", both("redis_evicted_keys_total", grows(5)), 3, "RedisEvicting P1", 20),
    Fault("IMAP is unreachable", {producer("dependency_up", 'dependency="imap"'): level(0)}, 3, "ImapUnreachable P2"),
    Fault("a sink is down", {worker("dependency_up", 'dependency="database"'): level(0)}, 3, "SinkDown P2"),
    Fault(
        "a sink fails too often to be asked",
        {worker("circuit_breaker_state", 'name="database"'): level(1)},
        4,
        "SinkDown P2 CircuitBreakerOpen P2",
    ),
    Fault("a sink is seven minutes behind", {OLDEST_OWED: frozen}, 7, "SinkLate P3"),
    Fault("a sink hangs for a quarter of an hour", {OLDEST_OWED: frozen}, 15, "SinkLate P3 SinkStuck P2"),
    Fault("a sink is four minutes behind", {OLDEST_OWED: frozen}, 4, ""),
    Fault("nothing is owed to a sink", {OLDEST_OWED: gone}, 20, ""),
    Fault(
        "an operator stops the sinks but the database",
        {OLDEST_OWED: frozen, worker("degradation_level"): level(2)},
        15,
        "",
    ),
    Fault("the mailbox is silent", {LAST_SYNC: frozen}, 15, "MailboxSilent P2"),
    Fault(
        "an operator pauses the producer",
        {producer("paused"): level(1), LAST_SYNC: frozen},
        15,
        "Paused P3 MailboxSilent P2",
    ),
    Fault("an operator pauses the workers", {worker("paused"): level(1)}, 3, "Paused P3"),
    Fault("the mailbox was never looked at", {LAST_SYNC: gone}, 8, "MailboxSilent P2"),
    Fault(
        "the server throttles",
        {producer("imap_connections_total", 'result="throttled"'): grows(1)},
        5,
        "ImapThrottled P3",
        25,
    ),
    Fault(
        "a mail server cannot send a message",
        {producer("imap_quarantined_messages", 'account="default"'): level(1)},
        15,
        "MailQuarantined P3",
    ),
    Fault(
        "it can after a few minutes",
        {producer("imap_quarantined_messages", 'account="default"'): level(1)},
        8,
        "",
    ),
    Fault(
        "the day's bytes are used up",
        {producer("imap_bytes_budget_remaining", 'account="default"'): level(0)},
        3,
        "ImapThrottled P3",
    ),
    Fault(
        "the token endpoint fails",
        {
            producer("oauth2_refreshes_total", 'result="error"'): grows(1),
            producer("oauth2_refreshes_total", 'result="success"'): grows(0),
        },
        25,
        "TokenRefreshFailing P3",
        25,
    ),
    Fault(
        "the token endpoint fails now and then",
        {
            producer("oauth2_refreshes_total", 'result="error"'): grows(0.5),
            producer("oauth2_refreshes_total", 'result="success"'): grows(0.5),
        },
        25,
        "",
    ),
    Fault("a consent ends tomorrow", {CONSENT: now(-86_400)}, 8, "ConsentEnding P3"),
    Fault(
        "consent is withdrawn",
        {producer("oauth2_reauth_required", 'account="default"'): level(1)},
        3,
        "ReauthRequired P3",
    ),
    Fault(
        "a breaker is open",
        {producer("circuit_breaker_state", 'name="imap"'): lambda minute, since, before: 1 + minute % 2},
        4,
        "CircuitBreakerOpen P2",
    ),
    Fault(
        "a breaker flaps",
        {
            producer("circuit_breaker_transitions_total", 'name="imap"', 'to="closed"'): grows(0.5),
            producer("circuit_breaker_transitions_total", 'name="imap"', 'to="open"'): grows(0.5),
        },
        15,
        "CircuitBreakerFlapping P3",
        45,
    ),
    Fault(
        "two short outages close the breaker of every process twice",
        both(
            "circuit_breaker_transitions_total",
            lambda minute, since, before: before + (minute - since <= 2),
            'name="redis"',
            'to="closed"',
        ),
        15,
        "",
    ),
    Fault(
        "a breaker's probes fail",
        {producer("circuit_breaker_transitions_total", 'name="imap"', 'to="open"'): grows(2)},
        15,
        "",
    ),
)

RESOURCES = (
    Fault("a disk fills up", both("disk_free_bytes", level(1e9), 'folder="data"'), 8, "DiskFilling P3"),
    Fault("a disk is full", both("disk_free_bytes", level(1e8), 'folder="data"'), 8, "DiskFilling P3 DiskFull P1"),
    Fault("reconcile finds a gap it cannot fill", {producer("reconcile_missing"): level(3)}, 95, "ReconcileGap P2"),
    Fault("reconcile finds a gap and fills it", {producer("reconcile_missing"): level(3)}, 60, ""),
    Fault("a machine's clock is a minute behind", {worker("clock_offset_seconds"): level(-60)}, 4, "ClockOffset P3"),
    Fault("a clock is a few seconds ahead", {worker("clock_offset_seconds"): level(4)}, 15, ""),
    Fault("stored bytes are lost", {producer("contents_lost"): level(2)}, 3, "ContentsLost P2"),
    Fault("the backup is of the day before yesterday", {BACKUP: now(100_000)}, 8, "BackupMissed P4"),
    Fault("there was never a backup", {BACKUP: gone}, 15, "BackupMissed P4"),
)

FAULTS = FLOW + PROCESSES + DEPENDENCIES + RESOURCES
