"""What follows from the facts: alerts, objectives, and one word for all of it."""

from dataclasses import dataclass

from infra.objectives.alerts import ALERTS, Alert, Facts
from infra.objectives.status import ObjectiveView, State
from infra.objectives.table import measured


@dataclass(frozen=True, slots=True)
class Judgement:
    """`alerts`: those that fire, the worst first, and what each says."""

    facts: Facts
    alerts: list[tuple[Alert, str]]
    objectives: list[ObjectiveView]

    @property
    def state(self) -> State:
        severities = {alert.severity for alert, _ in self.alerts}
        if "P0" in severities:
            return "down"
        if "P1" in severities:
            return "degraded"
        return "attention" if severities or self._missed else "well"

    @property
    def reason(self) -> str:
        found = [says for _, says in self.alerts]
        kind = "alert" if found else "objective"
        found = found or [f"{it.title}: {it.reason}; the target is {it.target}." for it in self._missed]
        if not found:
            return "Everything is well."
        more = len(found) - 1
        return f"{found[0].rstrip('.')}." + (f" And {more} more {kind}{'s' * (more > 1)}." if more else "")

    @property
    def _missed(self) -> list[ObjectiveView]:
        return [objective for objective in self.objectives if objective.state in ("at_risk", "broken")]


def judge(facts: Facts, *, per_instance: bool = False, has_log: bool = True) -> Judgement:
    """Ask every alert and every objective."""
    alerts = [(alert, says) for alert in ALERTS if (says := alert.says(facts))]
    return Judgement(facts, alerts, measured(facts.history, facts.gauges, per_instance=per_instance, has_log=has_log))
