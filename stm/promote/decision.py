"""The decision over all verdicts, and how it is said: in one line, in promotion.json and in tags.

Pure: verdicts and version numbers in, an outcome out.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stm.promote.gates import Verdict

TIMED = "query_milliseconds"  # the gate whose figure differs from run to run
Decision = Literal["promoted", "forced", "held", "unchanged"]


@dataclass(frozen=True)
class Outcome:
    """What was decided; `version` is 0 for an unregistered model (dry run), `previous` 0 without a champion."""

    decision: Decision
    version: int
    previous: int
    verdicts: Sequence[Verdict]
    model: str
    dry_run: bool = False
    reason: str = ""

    @property
    def champion(self) -> int:
        """The champion after the decision; 0 if there is none."""
        return self.version if self.decision in ("promoted", "forced") else self.previous

    def line(self) -> str:
        """The decision in one line."""
        who = f"version {self.version}" if self.version else "the merged model"
        holding = [verdict for verdict in self.verdicts if verdict.holds]
        causes = "; ".join(f"{verdict.name}: {verdict.detail}" for verdict in holding)
        old = f" (before: version {self.previous})" if self.previous else ""
        sitting = f"version {self.previous} stays champion" if self.previous else "there is no champion yet"
        would = "would be " if self.dry_run else "is "
        lines = {
            "promoted": f"{who} {would}the champion{old}: all required gates passed",
            "forced": f"{who} {would}the champion{old} by force ({self.reason}); gates missed: {causes or 'none'}",
            "held": f"{who} {would}held back as challenger, {sitting}; {causes}",
            "unchanged": f"{who} is the champion already" + (f", though today it misses {causes}" if causes else ""),
        }
        return lines[self.decision]

    def gates(self) -> dict[str, dict[str, Any]]:
        """Every verdict with its figures, by gate name."""
        return {
            verdict.name: {
                **verdict.figures,
                "passed": verdict.passed,
                "required": verdict.required,
                "detail": verdict.detail,
            }
            for verdict in self.verdicts
        }

    def as_json(self) -> dict[str, Any]:
        """Plain data for reports/promotion.json, equal from run to run: times stand in the version's tags alone."""
        gates = self.gates()
        if TIMED in gates:
            gates[TIMED] = {key: gates[TIMED][key] for key in ("passed", "required")}
        return {
            "decision": self.decision, "version": self.version, "previous_champion": self.previous or None,
            "champion": self.champion or None, "model": self.model, "reason": self.reason, "gates": gates,
            "line": self.line(),
        }  # fmt: skip

    def gate_tags(self) -> dict[str, str]:
        """Verdicts as tags of the version."""
        return {
            f"gate.{name}": json.dumps(gate, ensure_ascii=False, sort_keys=True) for name, gate in self.gates().items()
        }

    def decision_tags(self, who: str, when: str) -> dict[str, str]:
        """The decision as tags of the version; none where it only confirms an earlier one."""
        if self.decision == "unchanged":
            return {}
        return {
            "decision": self.decision, "decision.line": self.line(), "decision.when": when, "decision.who": who,
            "decision.reason": self.reason,  # empty as well: an earlier decision's reason is none for this one
        }  # fmt: skip


def decide(
    verdicts: Sequence[Verdict], version: int, previous: int, model: str, *, force: str, dry_run: bool
) -> Outcome:
    """The decision for a version (0: not registered yet) against the champion `previous` (0: none)."""
    decision: Decision = "promoted"
    if version and version == previous:
        decision = "unchanged"
    elif any(verdict.holds for verdict in verdicts):
        decision = "forced" if force else "held"
    return Outcome(decision, version, previous, verdicts, model, dry_run, force)
