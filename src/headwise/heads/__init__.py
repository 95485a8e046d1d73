"""Look at heads, score them, and cut them."""

from headwise.heads.gates import gated
from headwise.heads.importance import HeadScores, ablate, gradient_importance, random_scores
from headwise.heads.learned_gates import LearnedGates
from headwise.heads.observe import Observer, observe
from headwise.heads.prune import Plan, plan, plan_within, prune
from headwise.heads.report import write_page
from headwise.heads.roles import Role, guess
from headwise.heads.table import HeadTable, Seam
from headwise.heads.tokens import Tokens

__all__ = [
    "HeadScores",
    "HeadTable",
    "LearnedGates",
    "Observer",
    "Plan",
    "Role",
    "Seam",
    "Tokens",
    "ablate",
    "gated",
    "gradient_importance",
    "guess",
    "observe",
    "plan",
    "plan_within",
    "prune",
    "random_scores",
    "write_page",
]
