"""All that reads what comes from outside: a line for each."""

from tests.fuzz import cursors, events, headers, log_objects, operators
from tests.fuzz.target import Target, plain

TARGETS: dict[str, Target] = {
    "object": plain(log_objects.cases, log_objects.decode, share=3),
    "object's name": plain(log_objects.names, log_objects.name, share=2),
    "cursor": Target(cursors.cases, cursors.opened, share=3),
    "event": Target(events.cases, events.opened, share=4),
    "idempotency key": plain(headers.idempotency_keys, headers.read_idempotency_key),
    "entity tags": plain(headers.entity_tags, headers.read_entity_tags),
    "settings": plain(operators.settings, operators.read_settings),
    "command": plain(operators.commands, operators.read_command),
    "SQL": plain(operators.sql, operators.read_sql),
    "manifest, report": Target(operators.documents, operators.without_warnings, share=2),
}
