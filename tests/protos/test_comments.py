"""Every declaration of the contract has a complete comment, as `grpcurl describe` shows it."""

import re

from tests.protos import contract

MARKERS = ("Required", "Optional", "Input only.", "Output only.")
STATUSES = (
    "INTERNAL", "UNAVAILABLE", "UNIMPLEMENTED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED",
    "UNAUTHENTICATED", "PERMISSION_DENIED", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS",
    "ABORTED", "FAILED_PRECONDITION",
)  # fmt: skip


def test_every_declaration_has_a_comment() -> None:
    declared = list(contract.elements())
    kinds = {element.kind for element in declared}
    assert kinds == {"message", "field", "oneof", "enum", "value", "service", "rpc"}
    assert [element.name for element in declared if not element.comment] == []


def test_comments_are_whole_sentences() -> None:
    assert [
        element.name
        for element in contract.elements()
        if not re.fullmatch(r"[A-Z`0-9].*[.…`]", element.comment, re.DOTALL)
    ] == []


def test_request_fields_are_marked_required_or_optional() -> None:
    requests = [name for name in contract.messages() if name.endswith("Request")]
    sent = contract.reachable(requests)
    assert {"Subscription", "HttpTarget", "RetryPolicy", "Event"} <= sent
    assert "Attempt" not in sent
    comments = {
        element.name: element.comment for element in contract.elements() if element.kind == "field"
    }
    in_oneof = {
        f"{message.name}.{field.name}"
        for message in contract.messages().values()
        for field in message.field
        if field.HasField("oneof_index") and not field.proto3_optional
    }
    assert [
        name
        for name, comment in comments.items()
        if name.partition(".")[0] in sent
        and name not in in_oneof  # the comment of the oneof applies to its members
        and not comment.startswith(MARKERS)
    ] == []


def test_optional_fields_state_their_default() -> None:
    assert [
        element.name
        for element in contract.elements()
        if element.kind in {"field", "oneof"}
        and element.comment.startswith("Optional")
        and not re.search(r"Default:|0 means|Required, unless|None: ", element.comment)
    ] == []


def test_each_error_reason_has_a_status_and_an_example() -> None:
    reasons = {
        element.name.removeprefix("ErrorReason.ERROR_REASON_"): element.comment
        for element in contract.elements()
        if element.kind == "value" and element.name.startswith("ErrorReason.")
    }
    assert len(reasons) > 40
    del reasons["UNSPECIFIED"]
    example = re.compile(r"^ ?Example: .", re.MULTILINE)
    assert [name for name, text in reasons.items() if not example.search(text)] == []
    assert [name for name, text in reasons.items() if not text.startswith(STATUSES)] == []


def test_comments_name_only_existing_reasons() -> None:
    reasons = {
        value.name.removeprefix("ERROR_REASON_") for value in contract.enums()["ErrorReason"].value
    }
    statuses = r"(?:NOT_FOUND|ALREADY_EXISTS|ABORTED|FAILED_PRECONDITION)"
    named = {
        reason
        for element in contract.elements()
        for group in re.findall(statuses + r"\s+\(([A-Z_,\s]+)\)", element.comment)
        for reason in re.split(r",\s*", group)
    }
    assert len(named) > 15
    assert named - reasons == set()
