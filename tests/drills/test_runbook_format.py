"""What a page may say, and that each mistake in it is named with its file and line."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from tests.drills.runbook import BadRunbook, Evidence, Page, parse, read

EXAMPLE = Path(__file__).with_name("example.md")
HEAD = """\
# Page

## 1. Thing
<!-- drill: scenario=redis-down alerts=RedisDown heals=by-hand -->
<!-- symptom: ready=503 -->
"""


def page(body: str) -> Page:
    return parse(HEAD + dedent(body), Path("page.md"))


def test_a_procedure_is_read_with_everything_it_promises():
    (procedure,) = read(EXAMPLE).procedures
    assert (procedure.name, procedure.scenario, procedure.heals) == ("example#1-redis-down", "redis-down", "by-hand")
    assert procedure.alerts == {"RedisDown"}
    assert [(each.kind, each.value) for each in procedure.symptoms] == [
        ("ready", "503"),
        ("breaker", "redis/OPEN"),
        ("log", "RedisConnectionError"),
    ]
    assert [step.id for step in procedure.steps_of("diagnosis")] == ["ping", "process", "log"]
    ping = procedure.steps[0]
    assert ping.fault == Evidence(rc=1, match="Could not connect|Connection refused")
    assert ping.healthy == Evidence(rc=0, match="PONG")
    assert ping.text == "redis-cli -h $REDIS_HOST -p $REDIS_PORT ping"
    assert str(ping.where).endswith("example.md:19")


def test_an_alternative_takes_the_place_of_its_step_in_a_drill_of_its_own():
    (procedure,) = read(EXAMPLE).procedures
    assert procedure.variants == ("by-hand",)
    assert [step.id for step in procedure.steps_of("mitigation")] == ["restart"]
    assert [step.id for step in procedure.steps_of("mitigation", "by-hand")] == ["by-hand"]


def test_commands_in_the_prose_are_found_and_other_code_is_not():
    found = page("Type `redis-cli DBSIZE`, see `logs/worker.log`, or `./scripts/start.sh --sandbox`.\n").inline
    assert [(each.text, each.section) for each in found] == [
        ("redis-cli DBSIZE", "1-thing"),
        ("./scripts/start.sh --sandbox", "1-thing"),
    ]


def test_a_fence_knows_whether_a_step_covers_it():
    made = page(
        """
        <!-- step: phase=diagnosis match=x -->
        ```bash
        ps
        ```

        ```text
        an example
        ```
        """
    )
    assert [(fence.language, fence.step is not None) for fence in made.fences] == [("bash", True), ("text", False)]


def test_a_comment_inside_a_fence_is_text():
    assert page("```html\n<!-- step: nonsense -->\n```\n").procedures[0].steps == ()


def test_a_step_belongs_to_the_innermost_section_with_a_drill():
    made = page(
        """
        ### 1.1 Inner
        <!-- drill: scenario=healthy -->
        <!-- step: run="ps" phase=verify -->

        ## 2. Next
        <!-- drill: scenario=healthy soak -->
        <!-- step: run="df -h" phase=verify -->
        """
    )
    assert [[step.text for step in each.steps] for each in made.procedures] == [[], ["ps"], ["df -h"]]
    assert [each.soak for each in made.procedures] == [False, False, True]


def test_an_explicit_anchor_goes_before_the_one_of_the_title():
    text = HEAD.replace("## 1.", '<a id="1-thing-of-old"></a>\n\n## 1.')
    (procedure,) = parse(text, Path("page.md")).procedures
    assert procedure.anchor == "1-thing-of-old"


def test_a_command_for_windows_is_never_run():
    made = page('<!-- step: run="Get-Process redis-server" phase=mitigation platform=windows -->\n')
    assert made.procedures[0].steps[0].skip


@pytest.mark.parametrize(
    ("body", "line", "said"),
    [
        ("<!-- step: phase=diagnosys -->\n```\nps\n```\n", 6, "a step has a phase"),
        ("<!-- step: phase=verify mach=x -->\n```\nps\n```\n", 6, "did you mean 'match'"),
        ("<!-- step: phase=verify -->\n\nNo fence.\n", 6, "no fence follows"),
        ("<!-- step: phase=verify -->\n<!-- step: phase=verify -->\n```\nps\n```\n", 6, "no fence follows"),
        ("<!-- step: phase=verify match='(' -->\n```\nps\n```\n", 6, "no regular expression"),
        ("<!-- step: phase=verify json='a[' equals=1 -->\n```\nps\n```\n", 6, "no JMESPath"),
        ("<!-- step: phase=verify json=a equals=yes -->\n```\nps\n```\n", 6, "no JSON"),
        ("<!-- step: phase=verify json=a -->\n```\nps\n```\n", 6, "go together"),
        ("<!-- step: phase=verify rc=none -->\n```\nps\n```\n", 6, "rc is a number or any"),
        ("<!-- step: phase=verify timeout=long -->\n```\nps\n```\n", 6, "number of seconds"),
        ("<!-- step: phase=verify skip= -->\n```\nps\n```\n", 6, "skip needs a reason"),
        ("<!-- step: phase=diagnosis same=yes -->\n```\nps\n```\n", 6, "needs a reason"),
        ("\n<!-- step: phase=diagnosis -->\n```\nps\n```\n", 7, "needs evidence of the fault"),
        ("<!-- step: phase=verify run='ps' instead-of=x -->\n", 6, "there is no step x"),
        (
            "<!-- step: id=a phase=verify run=ps -->\n<!-- step: id=a phase=verify run=ps -->\n",
            7,
            "is taken by page.md:6",
        ),
        ("<!-- step: phase=verify match='x -->\n```\nps\n```\n", 6, "No closing quotation"),
        ("<!-- symptom: ready=503 breaker=redis/OPEN -->\n", 6, "exactly one of"),
        ("<!-- symptom: status=peers -->\n", 6, "go together"),
        ("<!-- drill: scenario=healthy -->\n", 6, "already has a drill"),
    ],
)
def test_a_mistake_is_named_with_its_line(body: str, line: int, said: str):
    with pytest.raises(BadRunbook, match=rf"^page\.md:{line}: .*{said}"):
        page(body)


@pytest.mark.parametrize(
    ("drill", "said"),
    [
        ("alerts=A", "names its scenario"),
        ("scenario=x", "says how the fault ends"),
        ("scenario=x heals=sometimes", "says how the fault ends"),
        ("scenario=x heals=itself", "needs symptoms"),
    ],
)
def test_a_drill_says_what_breaks_and_what_shows_and_how_it_ends(drill: str, said: str):
    with pytest.raises(BadRunbook, match=rf"^page\.md:1: .*{said}"):
        parse(f"# Page\n<!-- drill: {drill} -->\n", Path("page.md"))


def test_a_comment_outside_of_every_drilled_section_is_a_mistake():
    with pytest.raises(BadRunbook, match=r"^page\.md:3: this belongs to no section"):
        parse("# Page\n\n<!-- step: run=ps phase=verify -->\n", Path("page.md"))
