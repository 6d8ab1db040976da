"""What a report may conclude: intervals, tests, power. Pure functions of arrays, deterministic by seed.

    bootstrap        resamples over problems, or over seeds and their problems, paired across rows
    permutation      p-value of a paired difference by flipping signs
    multiplicity     p-values corrected for looking at several methods
    equivalence      whether a difference is shown to be small, or at least no harm
    power            the smallest difference that a table could have seen
    terms            an estimate problem by problem
    spread           which part of its variance samples, problems and seeds have

Sources: Miller, Adding Error Bars to Evals (arXiv 2411.00640): paired differences, clustered errors, power. Bowyer et
al., Don't Use the CLT in LLM Evals With Fewer Than a Few Hundred Datapoints (arXiv 2503.01747): why resampling. Wang
(arXiv 2512.21326): the parts of an evaluation's noise, and pairing to remove them.
"""

from eval.statistics import half_width, interval, mean_of, resampled_means
from pipelines.report.statistics.bootstrap import hierarchical_means, replicated_means
from pipelines.report.statistics.equivalence import Equivalence, equivalence
from pipelines.report.statistics.multiplicity import holm
from pipelines.report.statistics.permutation import sign_flip_test
from pipelines.report.statistics.power import minimum_detectable_effect, standard_error
from pipelines.report.statistics.spread import Spread, spread
from pipelines.report.statistics.terms import Terms, mean_terms, weighted_terms

__all__ = [
    "Equivalence",
    "Spread",
    "Terms",
    "equivalence",
    "half_width",
    "hierarchical_means",
    "holm",
    "interval",
    "mean_of",
    "mean_terms",
    "minimum_detectable_effect",
    "replicated_means",
    "resampled_means",
    "sign_flip_test",
    "spread",
    "standard_error",
    "weighted_terms",
]
