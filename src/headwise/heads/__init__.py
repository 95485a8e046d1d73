"""Look at heads, score them, cut them, and let them share."""

from headwise.heads.gates import gated
from headwise.heads.importance import HeadScores, ablate, gradient_importance, random_scores
from headwise.heads.learned_gates import LearnedGates
from headwise.heads.maps import Drawing, Picture, draw, sharpness
from headwise.heads.observe import Observer, observe
from headwise.heads.prune import Plan, plan, plan_within, prune
from headwise.heads.report import Report, page_of
from headwise.heads.report_data import Packed
from headwise.heads.roles import Role, guess
from headwise.heads.share import representatives
from headwise.heads.table import HeadTable, Seam
from headwise.heads.tokens import Tokens

__all__ = [
    "Drawing",
    "HeadScores",
    "HeadTable",
    "LearnedGates",
    "Observer",
    "Packed",
    "Picture",
    "Plan",
    "Report",
    "Role",
    "Seam",
    "Tokens",
    "ablate",
    "draw",
    "gated",
    "gradient_importance",
    "guess",
    "observe",
    "page_of",
    "plan",
    "plan_within",
    "prune",
    "random_scores",
    "representatives",
    "sharpness",
]
