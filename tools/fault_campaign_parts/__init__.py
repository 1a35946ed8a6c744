"""The parts of ``tools/fault_campaign.py``: faults, and what must survive them."""

PARTS = ("kills", "corruptions", "races", "malicious", "full-disk")
