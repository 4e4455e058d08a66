"""The names and shapes of the contract that clients rely on, and the conventions they share."""

from google.protobuf.descriptor_pb2 import FieldDescriptorProto

from tests.protos import contract

SERVICES = {
    "TenantService": "CreateTenant GetTenant ListTenants UpdateTenant DeleteTenant",
    "EventTypeService": (
        "CreateEventType GetEventType ListEventTypes UpdateEventType ArchiveEventType "
        "RegisterEventTypes"
    ),
    "EventService": "PublishEvents StreamPublishEvents GetEvent ListEvents ExplainEvent",
    "SubscriptionService": (
        "CreateSubscription GetSubscription ListSubscriptions UpdateSubscription "
        "DeleteSubscription PauseSubscription ResumeSubscription RotateSigningSecret SendTestEvent"
    ),
    "DeliveryService": (
        "GetDelivery ListDeliveries ListAttempts RetryDelivery CancelDelivery WatchDeliveries "
        "StartReplay GetReplay ListReplays CancelReplay"
    ),
    "AccessService": "CreateApiKey ListApiKeys RevokeApiKey ListAuditEntries",
    "OperationsService": "GetStatus",
}
LIST_PARENTS = {
    "ListTenants": None,
    "ListEventTypes": None,
    "ListApiKeys": None,
    "ListAttempts": "delivery",
}
"""The parent field of the lists that have no `tenant`; None if there is no parent."""

NAMED_VERBS = (
    "Get", "Delete", "Archive", "Pause", "Resume", "Rotate", "Send", "Retry", "Cancel", "Revoke",
    "Explain",
)  # fmt: skip

OPTIONAL = {
    "deduplicated", "delivery_count", "attempt_count", "matched",
    "pending_count", "dead_letter_count", "bucket_count", "total_count", "open_count",
    "limited_count", "held_count",
    "queued_count", "in_flight_count", "consecutive_failure_count",
    "scanned_count", "created_count", "retried_count", "missed_count",
}  # fmt: skip
"""The fields with explicit presence: JSON omits other fields if they are zero or false."""


def fields(message: str) -> dict[str, FieldDescriptorProto]:
    return {field.name: field for field in contract.messages()[message].field}


def rpcs(prefix: str) -> list[str]:
    names = [name for service in contract.methods().values() for name in service]
    return [name for name in names if name.startswith(prefix)]


def test_services_have_the_expected_rpcs() -> None:
    assert {name: " ".join(service) for name, service in contract.methods().items()} == SERVICES


def test_only_two_rpcs_stream() -> None:
    streams = {
        name: (method.client_streaming, method.server_streaming)
        for service in contract.methods().values()
        for name, method in service.items()
        if method.client_streaming or method.server_streaming
    }
    assert streams == {"StreamPublishEvents": (True, True), "WatchDeliveries": (False, True)}


def test_files_import_only_google_protobuf_and_the_contract() -> None:
    for file in contract.files():
        assert file.name.startswith("hookline/v1/")
        assert all(name.startswith(("google/protobuf/", "hookline/")) for name in file.dependency)
        assert bool(file.service) == file.name.endswith("_service.proto")
        assert not file.HasField("options"), "languages set their own options where they generate"


def test_every_list_is_bounded_and_paged() -> None:
    lists = rpcs("List")
    assert len(lists) == 9
    for name in lists:
        request, response = fields(f"{name}Request"), list(fields(f"{name}Response").values())
        assert request["page_size"].type == FieldDescriptorProto.TYPE_INT32
        assert request["page_token"].type == FieldDescriptorProto.TYPE_STRING
        assert request["filter"].type == FieldDescriptorProto.TYPE_STRING
        parents = {LIST_PARENTS.get(name, "tenant")} - {None}
        assert {"tenant", "delivery"} & request.keys() == parents
        resources, token = response
        assert resources.label == FieldDescriptorProto.LABEL_REPEATED
        assert contract.own(resources.type_name) in contract.messages()
        assert (token.name, token.type) == ("next_page_token", FieldDescriptorProto.TYPE_STRING)


def test_lists_of_payloads_have_a_view() -> None:
    assert [name for name in rpcs("List") if "view" in fields(f"{name}Request")] == ["ListEvents"]
    assert contract.own(fields("ListEventsRequest")["view"].type_name) == "EventView"


def test_requests_of_custom_verbs_carry_a_name() -> None:
    named = [name for verb in NAMED_VERBS for name in rpcs(verb) if name != "GetStatus"]
    assert len(named) == 18
    for name in named:
        first = contract.messages()[f"{name}Request"].field[0]
        assert (first.name, first.type) == ("name", FieldDescriptorProto.TYPE_STRING)


def test_updates_carry_the_resource_and_a_mask() -> None:
    for name in rpcs("Update"):
        resource, mask, *_ = contract.messages()[f"{name}Request"].field
        assert contract.own(resource.type_name) == name.removeprefix("Update")
        assert (mask.name, mask.type_name) == ("update_mask", ".google.protobuf.FieldMask")


def test_responses_wrap_the_resource_under_its_noun() -> None:
    for verb in ("Create", "Get", "Update"):
        for name in rpcs(verb):
            noun = name.removeprefix(verb)
            if noun == "Status":
                continue
            first = contract.messages()[f"{name}Response"].field[0]
            assert contract.own(first.type_name) == noun
            assert first.name == "".join(f"_{c.lower()}" if c.isupper() else c for c in noun)[1:]


def test_resources_with_concurrent_editors_have_etags() -> None:
    with_etag = {name for name in contract.messages() if "etag" in fields(name)}
    assert with_etag == {
        "EventType", "UpdateEventTypeRequest", "ArchiveEventTypeRequest",
        "Subscription", "UpdateSubscriptionRequest", "DeleteSubscriptionRequest",
    }  # fmt: skip


def test_numbers_that_matter_at_zero_are_optional() -> None:
    optional = {
        field.name
        for message in contract.messages().values()
        for field in message.field
        if field.proto3_optional
    }
    assert optional == OPTIONAL


def test_enums_are_top_level_and_begin_unspecified() -> None:
    assert [name for name, message in contract.messages().items() if message.enum_type] == []
    for name, enum in contract.enums().items():
        prefix = "".join(f"_{c}" if c.isupper() else c.upper() for c in name)[1:]
        assert (enum.value[0].name, enum.value[0].number) == (f"{prefix}_UNSPECIFIED", 0)
        assert all(value.name.startswith(f"{prefix}_") for value in enum.value)
        assert [value.number for value in enum.value] == list(range(len(enum.value)))
