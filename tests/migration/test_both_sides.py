"""Every order of events at both hosts: agents, QEMUs and hosts that die, messages that are lost or late, users who interfere."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.migration.two_sides import TwoSides

from livemove.migration.model import IncomingPhase, Owner, Phase, Verify

EXAMPLES = int(os.environ.get("LIVEMOVE_MACHINE_EXAMPLES", "300"))
#: After the last fault everything that is under way comes to its end in fewer.
TO_THE_END = 300


def play_on(world: TwoSides) -> None:
    """No more faults: agents are restarted, messages arrive, everything ends."""
    for _ in range(TO_THE_END):
        deeds = world.possible(faults=False)
        if not deeds:
            break
        deeds[0][1]()
        world.check()
    world.check_end()


def test_a_journey_without_faults_arrives():
    world = TwoSides(Verify.FULL)
    play_on(world)
    assert world.source is not None and world.source.phase is Phase.COMPLETED
    assert world.there is not None and world.there.phase is IncomingPhase.SETTLED
    assert world.there_qemu == "running"


def test_a_destination_that_was_never_armed_is_not_told_to_take_the_vm_for_ever():
    """The copy was complete before arming; then the source's agent dies, the question is lost, the source's QEMU dies."""
    world = TwoSides(Verify.OFF)
    for _ in range(100):
        if world.copy == "active":
            break
        deeds = world.possible(faults=False)
        deeds[0][1]()
    arming = [m for m in world.flying if m.request == "ArmHandOver"] + [
        c for c in world.outstanding if type(c).__name__ == "ArmHandOver"
    ]
    world._complete()
    world._kill_source_agent()
    world.flying.clear()
    world._restart_source()
    world._next_event()
    assert world.source is not None and not world.source.armed, arming
    world._kill_source_qemu()
    play_on(world)
    assert world.source.phase.terminal


@given(st.data())
@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
def test_never_two_never_none(data: st.DataObject):
    """Whatever happens in whatever order, afterwards the VM runs on exactly one host, unless something killed it.

    The journey first goes some way undisturbed, so that faults fall on every part of it.
    """
    world = TwoSides(data.draw(st.sampled_from(Verify), label="verify"))
    for _ in range(data.draw(st.integers(0, 40), label="undisturbed")):
        if deeds := world.possible(faults=False):
            deeds[0][1]()
            world.check()
    for _ in range(data.draw(st.integers(1, 25), label="disturbed")):
        deeds = world.possible(faults=True)
        name, deed = deeds[data.draw(st.integers(0, len(deeds) - 1))]
        data.draw(st.just(name), label="deed")
        deed()
        world.check()
    state = world.source
    if state is not None and state.owner is Owner.UNKNOWN:
        assert state.phase in (Phase.HANDING_OVER, Phase.UNRESOLVED)
    play_on(world)
