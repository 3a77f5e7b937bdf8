"""What agents and people say to each other about quality of service; see models.py for what holds of all bodies."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from livemove.api.model_base import Model, Text, Word
from livemove.policy.qos import PRIORITIES, DcbState, HostQos, QosWish, TrafficClass

Priority = Annotated[int, Field(ge=0, lt=PRIORITIES)]
Share = Annotated[int, Field(ge=0, le=100)]


class TrafficClassBody(Model):
    """policy.qos.TrafficClass on the wire; `share` in percent."""

    priority: Priority
    share: Share
    lossless: bool = False


class QosWishBody(Model):
    """policy.qos.QosWish on the wire."""

    dscp: Annotated[int, Field(ge=0, lt=64)] | None = None
    priority: Priority | None = None
    classes: Annotated[tuple[TrafficClassBody, ...], Field(max_length=PRIORITIES)] = ()
    nics: Annotated[tuple[Word, ...], Field(max_length=64)] = ()

    def to_wish(self) -> QosWish:
        classes = tuple(TrafficClass(of.priority, of.share, of.lossless) for of in self.classes)
        return QosWish(self.dscp, self.priority, classes, self.nics)


def wish_body(wish: QosWish) -> QosWishBody:
    classes = tuple(TrafficClassBody(priority=of.priority, share=of.share, lossless=of.lossless) for of in wish.classes)
    return QosWishBody(dscp=wish.dscp, priority=wish.priority, classes=classes, nics=wish.nics)


class DcbBody(Model):
    """policy.qos.DcbState on the wire."""

    willing: bool
    classes: Annotated[int, Field(ge=0, le=PRIORITIES)]
    lossless: Annotated[int, Field(ge=0, le=PRIORITIES)]
    share: Annotated[tuple[Share, ...], Field(min_length=PRIORITIES, max_length=PRIORITIES)]
    served: Annotated[tuple[Word, ...], Field(min_length=PRIORITIES, max_length=PRIORITIES)]
    class_of: Annotated[tuple[Priority, ...], Field(min_length=PRIORITIES, max_length=PRIORITIES)]
    pauses: Annotated[tuple[bool, ...], Field(min_length=PRIORITIES, max_length=PRIORITIES)]
    dscp_priority: Annotated[tuple[tuple[Annotated[int, Field(ge=0, lt=64)], Priority], ...], Field(max_length=64)] = ()

    def to_state(self) -> DcbState:
        return DcbState(
            self.willing, self.classes, self.lossless, self.share, self.served, self.class_of, self.pauses, self.dscp_priority
        )  # fmt: skip


def dcb_body(state: DcbState) -> DcbBody:
    return DcbBody(
        willing=state.willing, classes=state.classes, lossless=state.lossless, share=state.share, served=state.served,
        class_of=state.class_of, pauses=state.pauses, dscp_priority=state.dscp_priority,
    )  # fmt: skip


class QosNic(Model):
    """A NIC, or a member of a bond.

    :param networks: subnets of its addresses, or of the bond's that it belongs to.
    :param dcb: what its hardware is set to; None: it has no such classes.
    :param vlan_marks: of a VLAN: the 802.1p priority by the kernel's; None: it is none.
    """

    name: Word
    networks: Annotated[tuple[Word, ...], Field(max_length=256)] = ()
    dcb: DcbBody | None = None
    vlan_marks: dict[int, Priority] | None = None


class QosView(Model):
    """What a host was asked for, and what its NICs are set to.

    :param wish: None: nothing was asked for.
    :param notes: what is not as asked for, and why.
    :param commands: what was done to NICs, or with `dry_run` would be.
    """

    host: Word
    wish: QosWishBody | None
    nics: Annotated[tuple[QosNic, ...], Field(max_length=1024)]
    notes: tuple[Text, ...] = ()
    commands: tuple[Text, ...] = ()

    def to_host(self) -> HostQos:
        """For policy.qos.differences; a network that several NICs have counts by the first with classes."""
        by_network: dict[str, tuple[str, DcbState | None]] = {}
        for nic in self.nics:
            for network in nic.networks:
                if network not in by_network or (by_network[network][1] is None and nic.dcb):
                    by_network[network] = (nic.name, nic.dcb.to_state() if nic.dcb else None)
        return HostQos(self.host, self.wish.to_wish() if self.wish else None, by_network)
