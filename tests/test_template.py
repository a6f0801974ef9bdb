"""What the function may do in the commit log, as template.yaml says it (I7, and the last line of defence of I2)."""

from pathlib import Path
from typing import Any

from cfnlint.decode import decode

ROOT = Path(__file__).parent.parent


def resources() -> dict[str, Any]:
    template, problems = decode(str(ROOT / "template.yaml"))
    assert not problems
    assert template is not None
    return dict(template["Resources"])


def statements(policy: Any) -> list[Any]:
    return [statement for document in policy for statement in document["PolicyDocument"]["Statement"]]


def test_function_may_create_and_read_in_the_log_and_not_delete() -> None:
    role = resources()["FunctionRole"]["Properties"]["Policies"]
    in_log = [found for found in statements(role) if "/log/*" in str(found["Resource"])]
    assert [found["Action"] for found in in_log] == [["s3:GetObject", "s3:PutObject"]]
    everywhere = [
        found for found in statements(role) if str(found["Resource"]) in ("*", "{'Fn::GetAtt': 'Bucket.Arn'}")
    ]
    assert not any("Delete" in str(found["Action"]) for found in everywhere)
    assert not any("*" in str(found["Action"]) for found in statements(role))


def test_bucket_refuses_an_unconditional_put_into_the_log_from_anybody() -> None:
    policy = resources()["BucketPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    (denied,) = [found for found in policy if found["Sid"] == "CommitLogIsCreateOnly"]
    assert (denied["Effect"], denied["Principal"], denied["Action"]) == ("Deny", "*", "s3:PutObject")
    assert "/log/*" in str(denied["Resource"])
    assert denied["Condition"]["Null"] == {"s3:if-none-match": "true"}


def test_function_knows_its_log_and_its_backups() -> None:
    variables = resources()["Function"]["Properties"]["Environment"]["Variables"]
    assert str(variables["REPLICA_URL"]).endswith("/log'}")
    assert str(variables["BACKUP_URL"]).endswith("/backups'}")


def test_code_of_the_log_deletes_nothing() -> None:
    for path in (ROOT / "infra" / "commitlog").glob("*.py"):
        assert ".delete(" not in path.read_text(), path
