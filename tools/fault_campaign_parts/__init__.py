"""The fault campaign: injected faults, and the checks of what they leave behind."""

PARTS = ("kills", "corruptions", "races", "malicious", "full-disk")
