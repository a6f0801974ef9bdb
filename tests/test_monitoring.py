"""What infra/monitoring/ and template.yaml ask for is what the service shows, and each alert leads into the runbook."""

import json
import math
import re
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from cfnlint.decode import decode

from infra.objectives.alerts import ALERTS as OWN_ALERTS
from infra.objectives.table import OBJECTIVES
from infra.settings import SERVICE
from infra.telemetry.catalogue import BY_NAME, METRICS, Metric
from infra.telemetry.cloudwatch import CloudWatchMetrics
from infra.telemetry.metrics import _NOT_OF_THE_API
from tests.test_links import anchors

ROOT = Path(__file__).parent.parent
MONITORING = ROOT / "infra" / "monitoring"
DASHBOARD = MONITORING / "grafana" / "dashboards" / "cloud-native-poc.json"
# Of Prometheus itself, and of the target rather than of the service
_ITS_OWN = {"up": set[str](), "ALERTS": {"alertname", "alertstate", "severity"}}
_OF_A_TARGET = {"job", "instance"}
_OPERATORS = ("and", "or", "unless")


class Asked(NamedTuple):
    """A metric that an expression selects."""

    name: str
    matchers: dict[str, str]


def asked_by(expression: str) -> Iterator[Asked]:
    """Every selector of an expression of PromQL."""
    bare = re.sub(r"(\w+ by|on) \(.*?\)|\[[^]]*\]", "", expression)
    for name, matchers in re.findall(r"\b([a-zA-Z_:][\w:]*)\b(?!\()(\{.*?\})?", bare):
        if name not in _OPERATORS:
            yield Asked(name, dict(re.findall(r'(\w+)[!=]~?"([^"]*)"', matchers)))


def grouped_by(expression: str) -> set[str]:
    return {label for labels in re.findall(r"\b(?:by|on) \((.*?)\)", expression) for label in labels.split(", ")}


@cache
def rules() -> tuple[dict[str, Any], ...]:
    files = [yaml.safe_load(path.read_text()) for path in sorted((MONITORING / "rules").glob("*.yml"))]
    return tuple(rule for file in files for group in file["groups"] for rule in group["rules"])


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDED = {rule["record"] for rule in rules() if "record" in rule}


def expressions() -> list[str]:
    """Of the rules and of the dashboard."""
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    queries += [annotation["expr"] for annotation in dashboard["annotations"]["list"]]
    queries += [variable["query"]["query"].partition(", ")[0] for variable in dashboard["templating"]["list"]]
    return [*(rule["expr"] for rule in rules()), *queries]


def shown_as(name: str) -> Metric | None:
    """The metric of the service with this series, if it has one."""
    metric = BY_NAME.get(re.sub(r"_(bucket|sum|count)$", "", name), None)
    return metric if metric and (metric.kind == "histogram") is (name != metric.name) else None


def test_every_series_and_label_that_is_asked_for_is_one_of_the_service() -> None:
    problems = []
    for expression in expressions():
        for name, matchers in asked_by(expression):
            metric = shown_as(name)
            if metric is None and name not in _ITS_OWN | dict.fromkeys(RECORDED) and not name.startswith("process_"):
                problems.append(f"{name} is no metric")
            known = set(metric.labels) if metric else _ITS_OWN.get(name, {"slo"} if name in RECORDED else set())
            problems += [f"{name} has no label {label}" for label in matchers.keys() - known - _OF_A_TARGET]
            problems += [
                f"{label} of {name} is never {value}"
                for label, value in matchers.items()
                if metric and metric.labels.get(label) and not re.search(r"[|.$]", value)
                if value not in metric.labels[label]
            ]
    assert problems == []


def test_nothing_is_grouped_by_a_label_that_there_is_not() -> None:
    labels = {label for metric in METRICS for label in metric.labels} | _OF_A_TARGET | {"le"}
    assert {label for expression in expressions() for label in grouped_by(expression)} - labels == set()


def test_every_query_names_this_service_as_several_may_be_scraped() -> None:
    asked = [found for expression in expressions() for found in asked_by(expression)]
    assert [name for name, matchers in asked if matchers.get("job") != SERVICE and name not in RECORDED] == []


def test_requests_are_those_of_the_api_as_the_service_counts_them() -> None:
    excluded = "(" + "|".join(_NOT_OF_THE_API) + ").*"
    found = {value for expression in expressions() for value in re.findall(r'route!~"([^"]*)"', expression)}
    assert found == {excluded}


# Alerts


def test_every_alert_has_a_severity_and_texts_and_leads_to_its_section_in_the_runbook() -> None:
    for name, rule in ALERTS.items():
        assert re.fullmatch("P[0-3]", rule["labels"]["severity"]), name
        notes = rule["annotations"]
        assert notes.keys() == {"summary", "description", "runbook_url"}, name
        assert notes["runbook_url"].endswith(f"}}}}/RUNBOOK.md#alert-{name.lower()}")
        assert f"alert-{name.lower()}" in anchors(ROOT / "RUNBOOK.md"), name


def test_runbook_has_a_section_for_no_other_alert_and_says_the_same_severity() -> None:
    sections = re.findall(r"^### Alert: (\w+)\n\n\*\*When\*\*: (P\d)", (ROOT / "RUNBOOK.md").read_text(), re.MULTILINE)
    assert dict(sections) == {name: rule["labels"]["severity"] for name, rule in ALERTS.items()}
    assert len(sections) == len(ALERTS)


def test_alerts_that_the_service_knows_are_the_same_and_only_a_longer_memory_knows_the_others() -> None:
    own = {alert.name: (alert.severity, alert.runbook) for alert in OWN_ALERTS}
    theirs = {
        name: (rule["labels"]["severity"], rule["annotations"]["runbook_url"].rpartition("/")[2])
        for name, rule in ALERTS.items()
    }
    assert own.items() <= theirs.items()
    assert {name for name in theirs.keys() - own.keys() if "Burn" not in name} == set()


def test_alerts_that_the_service_knows_have_the_same_limits_over_the_same_time() -> None:
    own = {alert.name: (set(alert.limits), {alert.over} - {None}) for alert in OWN_ALERTS}
    theirs = {name: (limits_in(ALERTS[name]["expr"]), spans_in(ALERTS[name]["expr"])) for name in own}
    for name in ("NotReady", "StoreAway", "MaintenanceFailing"):  # the service is asked, or has the report
        own[name], theirs[name] = (own[name][0], set()), (theirs[name][0] - {0.5}, set())
    assert theirs == own


def limits_in(expression: str) -> set[float]:
    """What an expression compares with, but for 0."""
    bare = re.sub(r"\{.*?\}", "", expression).replace(" * 512 * 1024 * 1024", "")  # memory's is a share
    products = [*re.findall(r"[<>]=? ([0-9.]+(?: \* [0-9.]+)*)", bare), *re.findall(r"clamp_min\(.*, (\d+)\)", bare)]
    return {math.prod(map(float, product.split(" * "))) for product in products} - {0}


def spans_in(expression: str) -> set[str]:
    """Over which time an expression, or the rule whose result it takes, counts."""
    return {span.replace("1d", "24h") for span in re.findall(r"(?:\[|_rate)(\d+[mhd])\b", expression)}


@pytest.mark.parametrize("name", ["availability", "error_rate"])
def test_what_burns_is_the_budget_of_the_objective(name: str) -> None:
    (objective,) = [found for found in OBJECTIVES if found.name == name]
    target = float(re.sub("[^0-9.]", "", objective.target)) / 100
    burning = [rule["expr"] for rule in ALERTS.values() if f'slo="{name}"' in rule["expr"] and " * " in rule["expr"]]
    assert len(burning) == 2
    budgets = {float(budget) for expression in burning for budget in re.findall(r" \* ([0-9.]+)", expression)}
    assert budgets == {round(min(target, 1 - target), 6)}


def test_memory_is_high_near_the_limit_of_the_container_and_what_is_kept_reaches_as_far_as_the_objectives() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    limit = compose["x-service"]["deploy"]["resources"]["limits"]["memory"]
    assert f"{limit.removesuffix('M')} * 1024 * 1024" in ALERTS["MemoryHigh"]["expr"]
    (kept,) = re.findall(r"retention.time=(\d+)d", str(compose["services"]["prometheus"]["command"]))
    assert int(kept) > 30


def test_every_alert_has_a_series_that_makes_it_fire_and_one_that_does_not() -> None:
    for name in ALERTS:
        found = [test for test in rule_tests() if name in str(test)]
        assert found, name
        assert any(len(test["promql_expr_test"]) > 1 or len(instances(test)) > 1 for test in found), name


def rule_tests() -> list[dict[str, Any]]:
    files = [yaml.safe_load(path.read_text()) for path in sorted((MONITORING / "tests").glob("*.yml"))]
    return [test for file in files for test in file["tests"]]


def instances(test: dict[str, Any]) -> set[str]:
    return {found for series in test["input_series"] for found in re.findall(r'instance="(.*?)"', series["series"])}


# Grafana


def test_dashboard_shows_all_that_the_service_measures() -> None:
    shown = {name for expression in expressions() for name, _ in asked_by(expression)}
    known = {metric.name for name in shown if (metric := shown_as(name))}
    assert BY_NAME.keys() - known == {"maintenance_duration_seconds", "cold_starts_total"}


def test_dashboard_asks_the_source_that_is_provisioned_and_no_panel_covers_another() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    (source,) = yaml.safe_load((MONITORING / "grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert set(re.findall(r'"uid": "(\w+)"', DASHBOARD.read_text())) == {source["uid"]}
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        cell
        for at in (panel["gridPos"] for panel in panels)
        for cell in product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"]))
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24


# CloudWatch


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    found, problems = decode(str(ROOT / "template.yaml"))
    assert not problems
    assert found is not None
    return dict(found)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> set[tuple[str, frozenset[tuple[str, str]], str]]:
    """Namespace, dimensions and name of each metric that a function can print."""
    metrics = CloudWatchMetrics()
    values = {"status": ("200", "404", "503")}
    for metric in (metric for metric in METRICS if metric.on_lambda and metric.kind != "gauge"):
        for labels in product(*(known or values.get(label, ("x",)) for label, known in metric.labels.items())):
            if metric.kind == "counter":
                metrics.counter(metric, *labels).add()
            else:
                metrics.histogram(metric, *labels).observe(1)
            metrics.flush(lambda: {found.name: 1.0 for found in METRICS if found.kind == "gauge"})
    return {
        (directive["Namespace"], frozenset((key, line[key]) for key in keys), found["Name"])
        for line in map(json.loads, capsys.readouterr().out.splitlines())
        for directive in line["_aws"]["CloudWatchMetrics"]
        for keys in directive["Dimensions"]
        for found in directive["Metrics"]
    }


def test_cloudwatch_is_asked_for_what_the_functions_print(
    template: dict[str, Any], printed: set[tuple[str, frozenset[tuple[str, str]], str]]
) -> None:
    asked = {metric for metric in [*alarmed(template), *drawn(template)] if metric[0] == SERVICE}
    assert len(asked) > 10
    assert asked - printed == set()


def test_of_awss_own_metrics_only_those_of_the_functions_are_asked_for(template: dict[str, Any]) -> None:
    others = {metric for metric in [*alarmed(template), *drawn(template)] if metric[0] != SERVICE}
    assert {(namespace, name) for namespace, _, name in others} == {
        ("AWS/Lambda", name) for name in ("Errors", "Throttles", "ConcurrentExecutions")
    }
    assert {tuple(dimension) for _, dimensions, _ in others for dimension in dimensions} == {
        ("FunctionName", "Function"),
        ("FunctionName", "MaintenanceFunction"),
    }


def test_every_alarm_tells_the_topic_and_says_where_to_read_on(template: dict[str, Any]) -> None:
    topic = [{"Fn::If": ["MakesTopic", {"Ref": "AlarmTopic"}, {"Ref": "AlarmTopicArn"}]}]
    for alarm in alarms(template):
        assert (alarm["AlarmActions"], alarm["OKActions"]) == (topic, topic)
        said = re.fullmatch(r"(P\d): .*\. (\S+\.md)#(\S+)", alarm["AlarmDescription"])
        assert said
        severity, page, anchor = said.groups()
        assert anchor in anchors(ROOT / page)
        name = next(iter(alarm["AlarmName"].values())).split("-")[1]
        assert name not in ALERTS or ALERTS[name]["labels"]["severity"] == severity
        assert f"`{name}`" in (ROOT / "docs" / "lambda.md").read_text()


def test_alarms_have_the_limits_of_the_alerts_of_their_names(template: dict[str, Any]) -> None:
    found: dict[str, set[float]] = {}
    for alarm in alarms(template):
        numbers = found.setdefault(next(iter(alarm["AlarmName"].values())).split("-")[1], set())
        numbers |= {alarm["Threshold"], alarm.get("Period", 0) * alarm["EvaluationPeriods"]}
        for query in alarm.get("Metrics", ()):
            numbers |= set(map(float, re.findall(r"[<>]=? (\d+)", query.get("Expression", ""))))
    limits = {alert.name: set(alert.limits) for alert in OWN_ALERTS if alert.name in found}
    assert len(limits) == 6
    assert {name: limit - found[name] for name, limit in limits.items() if limit - found[name]} == {}


def alarms(template: dict[str, Any]) -> list[dict[str, Any]]:
    kinds = template["Resources"].values()
    return [resource["Properties"] for resource in kinds if resource["Type"] == "AWS::CloudWatch::Alarm"]


def alarmed(template: dict[str, Any]) -> Iterator[tuple[str, frozenset[tuple[str, str]], str]]:
    for alarm in alarms(template):
        for query in alarm.get("Metrics", [{"MetricStat": {"Metric": alarm}}]):
            if "MetricStat" in query:
                metric = query["MetricStat"]["Metric"]
                dimensions = ((found["Name"], found["Value"]) for found in metric["Dimensions"])
                yield (
                    metric["Namespace"],
                    frozenset((name, value["Ref"] if isinstance(value, dict) else value) for name, value in dimensions),
                    metric["MetricName"],
                )


def drawn(template: dict[str, Any]) -> Iterator[tuple[str, frozenset[tuple[str, str]], str]]:
    body = template["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
    for widget in json.loads(re.sub(r"\$\{(\w+)\}", r"\1", body))["widgets"]:
        for namespace, *rest in widget["properties"].get("metrics", ()):
            if rest:
                name, *dimensions = (part for part in rest if isinstance(part, str))
                yield namespace, frozenset(zip(dimensions[::2], dimensions[1::2], strict=True)), name
