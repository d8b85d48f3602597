"""What the API answers, for its description at `/openapi.json`; the answers themselves are made elsewhere."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from email_ingestion.records import ChangeKind
from email_ingestion.web.jobs import JobState


class ErrorDetail(BaseModel):
    """Why a request was not answered."""

    code: str = Field(description="a short stable word, such as not_found")
    message: str = Field(description="one sentence for a person")


class ErrorAnswer(BaseModel):
    """The shape of every error."""

    error: ErrorDetail


class EmailAnswer(BaseModel):
    """A record as `config/schemas/email.v1.json` describes it; here only the fields that a program needs first."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"$comment": "config/schemas/email.v1.json"})

    schema_: str = Field(alias="schema", description="email.v1")
    email_id: str = Field(description="the identity, and idempotency key")
    account: str
    subject: str
    internaldate: str
    text: str


class PageAnswer(BaseModel):
    """A page of records."""

    items: list[EmailAnswer]
    next: str | None = Field(description="the parameter `cursor` of the next page; null on the last")
    total: int | None = Field(description="of all pages; null above 1,000 and where it is not known")


class ListAnswer(BaseModel):
    """A page of other things."""

    items: list[dict[str, Any]]
    next: str | None
    total: int | None


class ChangeAnswer(BaseModel):
    """What happened to a message."""

    seq: int = Field(description="ascends in the order of the commits; gaps mean nothing")
    at: str
    kind: ChangeKind
    account: str
    email_id: str
    details: dict[str, Any] | None = Field(description="nothing of the content; null after an erasure")


class ChangesAnswer(BaseModel):
    """Changes in their order."""

    items: list[ChangeAnswer]
    next: int = Field(description="the parameter `after` of the next request, also where there are no items")
    total: None


class OrderAnswer(BaseModel):
    """An order: running, or done; of one that failed the error says why."""

    id: str = Field(description="for `orders/ID`; forgotten when the web process ends")
    title: str
    state: JobState
    step: str
    done: int = Field(description="units of the step that are done")
    total: int = Field(description="units of the step; 0 where that is not known")
    result: str = Field(description="one sentence, once it has ended")
    started_at: str
    ended_at: str | None


class LettersAnswer(BaseModel):
    """What an order about dead letters would do now."""

    preview: Literal[True]
    matched: int
    accounts: dict[str, int]
    groups: list[dict[str, Any]] = Field(description="by fingerprint")


class ResendAnswer(BaseModel):
    """What came of sending a message again."""

    email_id: str
    sink: str
    outcome: Literal["owed", "waiting", "dead"] = Field(
        description="the workers deliver it now; it was owed anyway; it is a dead letter, to be replayed"
    )


_MEANINGS = {
    400: "The query cannot be understood.",
    401: "No token, or none that is valid.",
    403: "More than the token may see.",
    404: "Nothing of that name.",
    409: "The beginning of an identity that several messages have; an order that is refused or failed.",
    421: "A Host that is not answered.",
    429: "The token asks too often.",
    503: "What would have to be asked is away.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": meaning} for status, meaning in _MEANINGS.items()
}


def page_answer(items: list[dict[str, Any]], after: str | int | None, total: int | None) -> dict[str, Any]:
    """Return a list as every path answers it; `after` is the cursor of the next page, None behind the last."""
    return {"items": items, "next": after, "total": total}
