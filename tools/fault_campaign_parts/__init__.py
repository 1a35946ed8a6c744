"""The parts of ``tools/fault_campaign.py``: faults, and what must survive them."""
