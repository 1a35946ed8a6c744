"""Class-agnostic proposals: extraction, their store, recall, exchange with Detectron2's files."""

from vild.proposals.detectron2_format import (
    ImageProposals,
    read_detectron2_proposals,
    write_detectron2_proposals,
)
from vild.proposals.extraction import ProposalExtractor, extract_proposals
from vild.proposals.recall import RecallMeter
from vild.proposals.store import Proposals, ProposalStore

__all__ = [
    "ImageProposals",
    "ProposalExtractor",
    "ProposalStore",
    "Proposals",
    "RecallMeter",
    "extract_proposals",
    "read_detectron2_proposals",
    "write_detectron2_proposals",
]
