"""Class-agnostic proposals: extraction, storage, recall, and Detectron2's file format."""

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
