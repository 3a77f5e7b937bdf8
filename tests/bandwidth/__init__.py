"""Bandwidth measured on real links: hosts in namespaces, cables shaped in the switch, governors, bulk and competing flows."""
