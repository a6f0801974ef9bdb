"""What the two functions may do in the bucket, as template.yaml says it (I7, and the last line of defence of I2)."""

from pathlib import Path
from typing import Any

import pytest
from cfnlint.decode import decode

ROOT = Path(__file__).parent.parent


@pytest.fixture
def resources() -> dict[str, Any]:
    template, problems = decode(str(ROOT / "template.yaml"))
    assert not problems
    assert template is not None
    return dict(template["Resources"])


def allowed(role: Any) -> dict[str, set[str]]:
    """The resources of each action, without the bucket's name."""
    found: dict[str, set[str]] = {}
    for policy in role["Properties"]["Policies"]:
        for statement in policy["PolicyDocument"]["Statement"]:
            for action in listed(statement["Action"]):
                found.setdefault(action, set()).update(map(text, listed(statement["Resource"])))
    return found


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def text(value: Any) -> str:
    """Of `!Sub text`, `!GetAtt name` or plain text."""
    inner = next(iter(value.values())) if isinstance(value, dict) else value
    return ".".join(listed(inner)).removeprefix("${Bucket.Arn}")


def test_the_function_that_serves_may_read_the_log_and_create_commits(resources: dict[str, Any]) -> None:
    assert allowed(resources["FunctionRole"]) == {
        "logs:CreateLogStream": {"LogGroup.Arn"},
        "logs:PutLogEvents": {"LogGroup.Arn"},
        "s3:ListBucket": {"Bucket.Arn"},
        "s3:GetObject": {"/log/*"},
        "s3:PutObject": {"/log/0000/*", "/log/create-if-absent", "/log/create-if-absent-*"},
    }


def test_maintenance_alone_may_delete_and_cannot_commit(resources: dict[str, Any]) -> None:
    found = allowed(resources["MaintenanceRole"])
    assert found["s3:DeleteObject"] == {"/log/000*", "/log/create-if-absent-*", "/backups/*"}
    levels = {f"/log/000{level}/*" for level in (1, 2, 3, 4, 9)}
    assert found["s3:PutObject"] == {*levels, "/log/maintenance.json", "/backups/*"}
    assert found["s3:GetObject"] == {"/log/*", "/backups/*"}
    roles = [name for name, resource in resources.items() if resource["Type"] == "AWS::IAM::Role"]
    assert sorted(roles) == ["FunctionRole", "MaintenanceRole"]


def test_bucket_refuses_an_unconditional_put_of_a_commit_from_anybody(resources: dict[str, Any]) -> None:
    policy = resources["BucketPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    (denied,) = [found for found in policy if found["Sid"] == "CommitLogIsCreateOnly"]
    assert (denied["Effect"], denied["Principal"], denied["Action"]) == ("Deny", "*", "s3:PutObject")
    created = {"/log/0000/*", "/log/create-if-absent", "/log/create-if-absent-*"}
    assert set(map(text, denied["Resource"])) == created
    assert denied["Condition"]["Null"] == {"s3:if-none-match": "true"}


def test_functions_know_their_log_and_only_maintenance_the_backups(resources: dict[str, Any]) -> None:
    serving, maintaining = (
        {
            name: text(value).removeprefix("s3://${Bucket}")
            for name, value in resources[function]["Properties"]["Environment"]["Variables"].items()
            if text(value) != "AWS::NoValue"
        }
        for function in ("Function", "MaintenanceFunction")
    )
    assert serving == {"REPLICA_URL": "/log"}
    assert maintaining == {"REPLICA_URL": "/log", "BACKUP_URL": "/backups"}


def test_maintenance_has_its_own_handler_role_and_schedules(resources: dict[str, Any]) -> None:
    function = resources["MaintenanceFunction"]["Properties"]
    assert function["ImageConfig"]["Command"] == ["handler.aws_maintenance.handler"]
    assert text(function["Role"]) == "MaintenanceRole.Arn"
    events = {event["Properties"]["Input"] for event in function["Events"].values()}
    assert events == {'{"action": "merge"}', '{"action": "maintain"}'}


def test_only_maintenance_deletes_from_the_log() -> None:
    found = [path.name for path in (ROOT / "infra" / "commitlog").glob("*.py") if ".delete(" in path.read_text()]
    assert found == ["maintenance.py"]
