"""Look at heads, score them, and cut them."""

from headwise.heads.gates import gated
from headwise.heads.importance import HeadScores, ablate, gradient_importance, random_scores
from headwise.heads.maps import Drawing, Picture, draw, sharpness
from headwise.heads.observe import Observer, observe
from headwise.heads.prune import Plan, plan, plan_within, prune
from headwise.heads.report import Report, page_of
from headwise.heads.report_data import Packed
from headwise.heads.table import HeadTable, Seam

__all__ = [
    "Drawing",
    "HeadScores",
    "HeadTable",
    "Observer",
    "Packed",
    "Picture",
    "Plan",
    "Report",
    "Seam",
    "ablate",
    "draw",
    "gated",
    "gradient_importance",
    "observe",
    "page_of",
    "plan",
    "plan_within",
    "prune",
    "random_scores",
    "sharpness",
]
