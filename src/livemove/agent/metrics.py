"""Prometheus metrics of an agent; docs/metrics.md lists them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from livemove.agent.host import Host

#: name -> meaning; the docs test compares this with docs/metrics.md.
METRICS = {
    "livemove_vms_running": "VMs that run on this host",
    "livemove_memory_available_bytes": "Memory that the kernel says is available",
    "livemove_memory_promised_bytes": "Memory promised to VMs that have not taken it yet",
    "livemove_journeys_outgoing": "Journeys leaving this host now",
    "livemove_journeys_outgoing_waiting": "Journeys waiting for an outgoing slot",
    "livemove_journeys_incoming": "Journeys arriving at this host now",
    "livemove_journeys_incoming_waiting": "Journeys waiting for an incoming slot",
    "livemove_journeys_ended_total": "Journeys from this host that ended since the agent's start, by outcome",
    "livemove_journeys_unresolved": "VMs whose hand-over is under way or not resolved",
    "livemove_journey_remaining_bytes": "Memory still to be sent, by journey",
    "livemove_journey_transferred_bytes": "Bytes sent so far, by journey",
    "livemove_journey_rate_bytes_per_second": "Memory leaving a second, by journey",
    "livemove_journey_round": "Present round, by journey",
    "livemove_journey_allowed_bytes_per_second": "What a journey may use now as this host sees it, +Inf when nothing limits it; while it is governed",
    "livemove_nic_others_bytes_per_second": "What others than migration use of a NIC, while journeys are governed",
    "livemove_nic_shaped": "1 for a NIC that has livemove's classes now",
    "livemove_certificate_days_left": "Days until this host's certificate ends; it is renewed long before",
    "livemove_authority_silent_seconds": "Seconds since the authority's host last answered",
    "livemove_revoked_certificates": "Certificates on the list of revoked ones that this host has",
    "livemove_refused_total": "Connections and requests refused since the agent's start, by kind",
}


class _Collector:
    def __init__(self, host: Host) -> None:
        self._host = host

    def collect(self) -> list[Metric]:
        host = self._host
        view = host.view()
        plain = {
            "livemove_vms_running": len([r for r in host.records.all() if host.vms.find_running(r.name)]),
            "livemove_memory_available_bytes": view.memory_available_bytes,
            "livemove_memory_promised_bytes": view.memory_promised_bytes,
            "livemove_journeys_outgoing": len(view.outgoing),
            "livemove_journeys_outgoing_waiting": len(view.outgoing_waiting),
            "livemove_journeys_incoming": len(view.incoming),
            "livemove_journeys_incoming_waiting": len(view.incoming_waiting),
            "livemove_journeys_unresolved": len(host.vms.unresolved),
            "livemove_certificate_days_left": host.follower.certificate_days_left(),
            "livemove_authority_silent_seconds": host.follower.silent_s(),
            "livemove_revoked_certificates": len(host.membership.revocations.serials),
        }
        metrics: list[Metric] = [GaugeMetricFamily(name, METRICS[name], value=value) for name, value in plain.items()]
        ended = CounterMetricFamily(
            "livemove_journeys_ended", METRICS["livemove_journeys_ended_total"], labels=["outcome"]
        )
        for outcome in ("completed", "failed", "cancelled", "ended"):
            ended.add_metric([outcome], host.departures.ended.get(outcome, 0))
        metrics.append(ended)
        refused = CounterMetricFamily("livemove_refused", METRICS["livemove_refused_total"], labels=["kind"])
        for kind, count in sorted(host.refusals.counts.items()):
            refused.add_metric([kind], count)
        metrics.append(refused)
        return metrics + self._journeys() + self._bandwidth()

    def _journeys(self) -> list[Metric]:
        names = (
            "livemove_journey_remaining_bytes", "livemove_journey_transferred_bytes",
            "livemove_journey_rate_bytes_per_second", "livemove_journey_round",
        )  # fmt: skip
        families = {
            name: GaugeMetricFamily(name, METRICS[name], labels=["vm", "journey", "destination"]) for name in names
        }
        for departure in self._host.departures.open():
            record, engine = departure.record, departure.effects.engine
            counters = engine.counters
            values = (counters.remaining_bytes, counters.wire_bytes, engine.rate_bytes_per_s, counters.rounds)
            for name, value in zip(names, values, strict=True):
                families[name].add_metric([record.vm, record.id, record.destination], value)
        return list(families.values())

    def _bandwidth(self) -> list[Metric]:
        governor = self._host.governor
        allowed, others, shaped = (
            GaugeMetricFamily(name, METRICS[name], labels=labels)
            for name, labels in (
                ("livemove_journey_allowed_bytes_per_second", ["journey", "role"]),
                ("livemove_nic_others_bytes_per_second", ["nic", "direction"]),
                ("livemove_nic_shaped", ["nic"]),
            )
        )
        for journey, role, rate in governor.shares():
            allowed.add_metric([journey, role], rate)
        for (nic, way), rate in sorted(governor.others.items(), key=lambda item: (item[0][0], item[0][1].value)):
            others.add_metric([nic, way.value], rate)
        for nic in sorted(governor.shaped):
            shaped.add_metric([nic], 1)
        return [allowed, others, shaped]


def render_metrics(host: Host) -> bytes:
    """The text that Prometheus reads."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(host))
    return generate_latest(registry)
