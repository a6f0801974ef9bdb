"""What the two functions may do in the bucket, as template.yaml says it (I7, and the last line of defence of I2)."""

import re
import subprocess
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from cfnlint.decode import decode

from infra.commitlog import LogObject
from infra.commitlog.objects import ObjectNames
from tests.e2e.pages import blocks

ROOT = Path(__file__).parent.parent


def resources_when(*conditions: str) -> dict[str, Any]:
    """Those of a stack for which these conditions hold; what comes from no other than `Fn::If` is not resolved."""
    template, problems = decode(str(ROOT / "template.yaml"))
    assert not problems
    assert template is not None
    found = resolved(template["Resources"], conditions)
    return {name: resource for name, resource in found.items() if resource.get("Condition") in (None, *conditions)}


def resolved(value: Any, conditions: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"Fn::If"}:
            condition, if_so, if_not = value["Fn::If"]
            return resolved(if_so if condition in conditions else if_not, conditions)
        found = {name: resolved(each, conditions) for name, each in value.items()}
        return {name: each for name, each in found.items() if each != NO_VALUE}
    if isinstance(value, list):
        return [each for each in (resolved(each, conditions) for each in value) if each != NO_VALUE]
    return value


NO_VALUE = {"Ref": "AWS::NoValue"}


@pytest.fixture
def resources() -> dict[str, Any]:
    return resources_when("UsesLog", "UsesJwt", "MakesTopic", "TellsByEmail")


def allowed(role: Any) -> dict[str, set[str]]:
    """The resources of each action, without the bucket's name. Nothing else gives it anything."""
    assert set(role["Properties"]) == {"AssumeRolePolicyDocument", "Policies"}
    found: dict[str, set[str]] = {}
    for policy in role["Properties"]["Policies"]:
        for statement in policy["PolicyDocument"]["Statement"]:
            assert statement["Effect"] == "Allow"
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
    levels = {f"/log/000{level}/*" for level in (1, 2, 3, 4, 9)}
    assert allowed(resources["MaintenanceRole"]) == {
        "logs:CreateLogStream": {"LogGroup.Arn"},
        "logs:PutLogEvents": {"LogGroup.Arn"},
        "s3:ListBucket": {"Bucket.Arn"},
        "s3:GetObject": {"/log/*", "/backups/*"},
        "s3:PutObject": {*levels, "/log/maintenance.json", "/backups/*"},
        "s3:AbortMultipartUpload": {*levels, "/log/maintenance.json", "/backups/*"},
        "s3:DeleteObject": {"/log/000*", "/log/create-if-absent-*", "/backups/*"},
    }


def test_sidecars_are_maintenances_to_write_and_delete_and_the_functions_to_read(resources: dict[str, Any]) -> None:
    sidecar = "/log/" + ObjectNames("s3://bucket/log").sidecar_of(LogObject(9, 1, 7, 0, datetime.now(UTC)))
    serves, maintains = allowed(resources["FunctionRole"]), allowed(resources["MaintenanceRole"])
    for actions, action, may in [
        (serves, "s3:GetObject", True),
        (serves, "s3:PutObject", False),
        (maintains, "s3:GetObject", True),
        (maintains, "s3:PutObject", True),
        (maintains, "s3:DeleteObject", True),
    ]:
        assert any(fnmatchcase(sidecar, resource) for resource in actions[action]) is may


def test_no_other_role_or_policy_gives_anything_and_each_function_has_its_own_role(resources: dict[str, Any]) -> None:
    of_iam = {name: resource["Type"] for name, resource in resources.items() if "::IAM::" in resource["Type"]}
    assert of_iam == dict.fromkeys(("FunctionRole", "MaintenanceRole"), "AWS::IAM::Role")
    functions = {
        name: text(resource["Properties"]["Role"])
        for name, resource in resources.items()
        if resource["Type"] == "AWS::Serverless::Function"
    }
    assert functions == {"Function": "FunctionRole.Arn", "MaintenanceFunction": "MaintenanceRole.Arn"}
    policies = [resource for resource in resources.values() if resource["Type"] == "AWS::S3::BucketPolicy"]
    assert policies == [resources["BucketPolicy"]]
    effects = {found["Effect"] for found in policies[0]["Properties"]["PolicyDocument"]["Statement"]}
    assert effects == {"Deny"}


def test_bucket_refuses_an_unconditional_put_of_a_commit_from_anybody(resources: dict[str, Any]) -> None:
    assert resources["BucketPolicy"]["Properties"]["Bucket"] == {"Ref": "Bucket"}
    policy = resources["BucketPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    (denied,) = [found for found in policy if found["Sid"] == "CommitLogIsCreateOnly"]
    assert (denied["Effect"], denied["Principal"], denied["Action"]) == ("Deny", "*", "s3:PutObject")
    created = {"/log/0000/*", "/log/create-if-absent", "/log/create-if-absent-*"}
    assert set(map(text, denied["Resource"])) == created
    # Whatever is a condition more makes the denial weaker
    assert denied["Condition"] == {
        "Null": {"s3:if-none-match": "true"},
        "Bool": {"s3:ObjectCreationOperation": "true"},
    }


def test_bucket_keeps_what_is_current_and_the_versions_of_what_was_deleted(resources: dict[str, Any]) -> None:
    bucket = resources["Bucket"]["Properties"]
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    effects = {key for rule in bucket["LifecycleConfiguration"]["Rules"] for key in rule}
    assert effects - {"Id", "Status", "Prefix"} == {
        "NoncurrentVersionExpiration",
        "AbortIncompleteMultipartUpload",
        "ExpiredObjectDeleteMarker",
    }


def test_functions_know_their_log_and_only_maintenance_the_backups(resources: dict[str, Any]) -> None:
    serving, maintaining = (
        {
            name: text(value).removeprefix("s3://${Bucket}")
            for name, value in resources[function]["Properties"]["Environment"]["Variables"].items()
        }
        for function in ("Function", "MaintenanceFunction")
    )
    said = {"AUTH_MODE": "AuthMode", "IAM_OPS_ARNS": "OperatorArns", "JWT_SCOPE_PREFIX": "JwtScopePrefix"}
    said |= {"PAGED_ABOVE_MB": "PagedAboveMb", "PAGE_CACHE_MB": "PageCacheMb"}
    assert serving == {"REPLICA_URL": "/log", **said}
    assert maintaining == {"REPLICA_URL": "/log", "BACKUP_URL": "/backups"}


def test_function_on_postgresql_has_the_secret_and_nothing_in_the_bucket() -> None:
    resources = resources_when("UsesPostgres")
    variables = resources["Function"]["Properties"]["Environment"]["Variables"]
    assert text(variables["DATABASE_URL"]) == "{{resolve:secretsmanager:${DatabaseUrl}:SecretString}}"
    assert not {"REPLICA_URL", "DATABASE_TOKEN"} & set(variables)
    assert set(allowed(resources["FunctionRole"])) == {"logs:CreateLogStream", "logs:PutLogEvents"}
    assert "VpcConfig" not in resources["Function"]["Properties"]
    events = resources["MaintenanceFunction"]["Properties"]["Events"].values()
    assert {event["Properties"]["State"] for event in events} == {"DISABLED"}
    assert not {"MaintenanceFailedAlarm", "NoMaintenanceAlarm", "BackupOldAlarm"} & set(resources)


@pytest.mark.parametrize(
    ("kind", "connect", "to"),
    [(["UsesDsql"], "dsql:DbConnect", ":cluster/${DatabaseId}"), ([], "rds-db:connect", ":dbuser:${DatabaseId}")],
)
def test_function_with_tokens_may_connect_as_one_user(kind: list[str], connect: str, to: str) -> None:
    resources = resources_when("UsesPostgres", "UsesToken", *kind)
    assert text(resources["Function"]["Properties"]["Environment"]["Variables"]["DATABASE_TOKEN"]) == "DatabaseToken"
    (there,) = allowed(resources["FunctionRole"])[connect]
    assert there.endswith(to)


def test_function_in_a_vpc_may_make_its_interfaces() -> None:
    resources = resources_when("UsesLog", "InVpc")
    assert set(resources["Function"]["Properties"]["VpcConfig"]) == {"SubnetIds", "SecurityGroupIds"}
    network = {action for action in allowed(resources["FunctionRole"]) if action.startswith("ec2:")}
    assert {"ec2:CreateNetworkInterface", "ec2:DescribeNetworkInterfaces", "ec2:DeleteNetworkInterface"} <= network


def test_each_door_asks_before_the_function_does(resources: dict[str, Any]) -> None:
    assert resources["HttpApi"]["Properties"]["Auth"]["DefaultAuthorizer"] == "AWS_IAM"
    assert text(resources["Function"]["Properties"]["FunctionUrlConfig"]["AuthType"]) == "AuthType"
    route = resources["JwtRoute"]["Properties"]
    assert (route["AuthorizationType"], text(route["AuthorizerId"])) == ("JWT", "JwtAuthorizer")
    tokens = {name: resource for name, resource in resources.items() if name.startswith("Jwt")}
    assert {resource.get("Condition") for resource in tokens.values()} == {"UsesJwt"}


def test_a_stack_whose_maker_says_nothing_lets_in_whom_aws_has_verified() -> None:
    template, _ = decode(str(ROOT / "template.yaml"))
    assert template is not None
    defaults = {name: template["Parameters"][name]["Default"] for name in ("AuthMode", "AuthType", "OperatorArns")}
    assert defaults == {"AuthMode": "iam", "AuthType": "AWS_IAM", "OperatorArns": ""}


def test_page_moves_the_log_everywhere_at_once(tmp_path: Path) -> None:
    (block,) = [block for block in blocks("docs/lambda.md") if block.name == "The log is damaged"]
    (command,) = [line for line in block.script.splitlines() if line.startswith("sed ")]
    template = (ROOT / "template.yaml").read_text()
    (tmp_path / "template.yaml").write_text(template)
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    moved = (tmp_path / "template.yaml").read_text()
    assert not re.search(r"\blog/|/log\b", moved)
    assert re.sub(r"\blog2\b", "log", moved) == template


def test_maintenance_has_its_own_handler_and_schedules(resources: dict[str, Any]) -> None:
    function = resources["MaintenanceFunction"]["Properties"]
    assert function["ImageConfig"]["Command"] == ["handler.aws_maintenance.handler"]
    events = {event["Properties"]["Input"] for event in function["Events"].values()}
    assert events == {'{"action": "merge"}', '{"action": "maintain"}'}


def test_only_maintenance_deletes_from_the_log() -> None:
    found = {path for path in (ROOT / "infra" / "commitlog").rglob("*.py") if ".delete(" in path.read_text()}
    assert found == {ROOT / "infra" / "commitlog" / "upkeep" / name for name in ("compactor.py", "sidecars.py")}
