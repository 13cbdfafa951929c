"""A phone's CPU without a phone: LiteRT for 64-bit ARM in QEMU, whose instructions are counted."""
