"""livemove: live migration of running virtual machines between QEMU/KVM hosts."""

__version__ = "0.1.0"
