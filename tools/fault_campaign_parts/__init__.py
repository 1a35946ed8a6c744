"""The parts of ``tools/fault_campaign.py``: faults that are injected, and what must survive them."""
